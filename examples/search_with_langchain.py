"""Index three sentences in LangChain and find the one that answers a question."""

from langchain_core.vectorstores import InMemoryVectorStore

from grit_mlx.integrations.langchain import GritEmbeddings

store = InMemoryVectorStore(GritEmbeddings())
store.add_texts(["Yeast makes bread rise.", "The keel keeps a ship upright.", "Rain falls in spring."])
(found,) = store.similarity_search("Why does bread rise?", k=1)
print(found.page_content)
