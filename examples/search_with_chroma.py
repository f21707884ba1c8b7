"""Index three sentences in Chroma and find the one that answers a question."""

import chromadb

from grit_mlx.integrations.chroma import GritEmbeddingFunction

texts = ["Yeast makes bread rise.", "The keel keeps a ship upright.", "Rain falls in spring."]
collection = chromadb.EphemeralClient().create_collection("notes", embedding_function=GritEmbeddingFunction())
collection.add(ids=["bread", "ship", "rain"], documents=texts)
print(collection.query(query_texts=["Why does bread rise?"], n_results=1)["documents"][0][0])
