"""Which tokens are the same word in a search, and how repeated words are weighted."""

from __future__ import annotations

import numpy as np
import Stemmer
from tokenizers import Tokenizer

# A word that occurs n times has the weight n / sqrt(ALONE + (STRENGTH n / (n + SINK))**2), which grows much more slowly
# than n, as in BM25. Attention and a norm can compute this form; see write_model.py.
ALONE, STRENGTH, SINK = 1.1, 6.0, 8.0


def same_words(tokenizer: Tokenizer) -> np.ndarray:
    """``(V,)``: for each token the first token with the same word, ignoring case and endings."""
    stem = Stemmer.Stemmer("english").stemWord
    vocabulary = tokenizer.get_vocab()
    found = np.arange(len(vocabulary))
    first: dict[str, int] = {}
    for piece, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        word = piece.strip("▁").lower()
        key = ("▁" if piece.startswith("▁") else "") + stem(word) if word.isalpha() else piece.lower()
        found[number] = first.setdefault(key, number)
    return found


def saturation(counts: np.ndarray) -> np.ndarray:
    """The weight of each occurrence of a word that occurs ``counts`` times."""
    return 1 / np.sqrt(ALONE + (STRENGTH * counts / (counts + SINK)) ** 2)
