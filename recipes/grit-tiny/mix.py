"""The weighted mean of token tables with a common origin: python mix.py static=.2 pairs=.4 bags=.4

It scores better than each of them. Writes runs/grit-tiny/mixed.npy and prints the development scores.
"""

from __future__ import annotations

import argparse

import bags
import numpy as np
import sources
import words
from tokenizers import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", metavar="NAME=SHARE")
    parser.add_argument("--name", default="mixed")
    options = parser.parse_args()
    shares = {name: float(share) for name, _, share in (part.partition("=") for part in options.parts)}
    tables = [share * np.load(sources.WORK / f"{name}.npy") for name, share in shares.items()]
    mixed = (sum(tables) / sum(shares.values())).astype(np.float32)
    tokenizer = Tokenizer.from_file(str(sources.WORK / "tokenizer" / "tokenizer.json"))
    print(bags.told(bags.scores(mixed, bags.load_sets(tokenizer, words.same_words(tokenizer)))))
    np.save(sources.WORK / f"{options.name}.npy", mixed)


if __name__ == "__main__":
    main()
