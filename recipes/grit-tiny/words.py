"""Which tokens are the same word to a search, and how often a word counts that is there several times."""

from __future__ import annotations

import numpy as np
import Stemmer
from tokenizers import Tokenizer

# A word that is there n times weighs n times 1 / sqrt(ALONE + (STRENGTH n / (n + SINK))**2): far less than n times, as
# in BM25. In this form because attention and a norm can compute it; see write_model.py.
ALONE, STRENGTH, SINK = 1.1, 6.0, 8.0


def same_words(tokenizer: Tokenizer) -> np.ndarray:
    """``(V,)``: of each token the first of those that are the same but for capitals and endings."""
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
    """The weight of each of a word's ``counts`` occurrences."""
    return 1 / np.sqrt(ALONE + (STRENGTH * counts / (counts + SINK)) ** 2)
