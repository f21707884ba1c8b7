"""A program written for sentence-transformers."""

from grit_mlx.integrations.sentence_transformers import GritEncoder

model = GritEncoder()
texts = ["Yeast makes bread rise.", "The keel keeps a ship upright.", "Rain falls in spring."]
scores = model.similarity(model.encode_query("Why does bread rise?"), model.encode_document(texts))
print(texts[scores[0].argmax()])
