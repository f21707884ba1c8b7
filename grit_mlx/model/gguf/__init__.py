"""GGUF, llama.cpp's file of a model, as a model folder: its config, its tokenizer and its weights.

``header`` reads what a file says of itself, ``architectures`` and ``vocabulary`` bring that into the terms of Hugging
Face's files, ``tensors`` reads weights, and ``folder`` puts the three together.
"""
