"""Index three sentences in Haystack and find the one that answers a question."""

from haystack import Document
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from grit_mlx.integrations.haystack import GritDocumentEmbedder, GritTextEmbedder

texts = ["Yeast makes bread rise.", "The keel keeps a ship upright.", "Rain falls in spring."]
store = InMemoryDocumentStore(embedding_similarity_function="cosine")
store.write_documents(GritDocumentEmbedder().run([Document(content=text) for text in texts])["documents"])
query = GritTextEmbedder().run("Why does bread rise?")["embedding"]
(found,) = InMemoryEmbeddingRetriever(store, top_k=1).run(query)["documents"]
print(found.content)
