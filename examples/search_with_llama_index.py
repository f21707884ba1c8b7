"""Index three sentences in LlamaIndex and find the one that answers a question."""

from llama_index.core import Document, VectorStoreIndex

from grit_mlx.integrations.llama_index import GritEmbedding

texts = ["Yeast makes bread rise.", "The keel keeps a ship upright.", "Rain falls in spring."]
index = VectorStoreIndex.from_documents([Document(text=text) for text in texts], embed_model=GritEmbedding())
(found,) = index.as_retriever(similarity_top_k=1).retrieve("Why does bread rise?")
print(found.node.get_content())
