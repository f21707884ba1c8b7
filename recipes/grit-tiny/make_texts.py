"""The training texts as the teacher's tokens: python recipes/grit-tiny/make_texts.py

Writes runs/grit-tiny/texts.npz: all texts one after the other, where each begins, and the pairs of query and passage.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import sources
from tokenizers import Tokenizer

# Tokens of a text that are kept: a window of them is drawn when training.
LONGEST = 384


def main() -> None:
    tokenizer = Tokenizer.from_file(str(sources.teacher() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    known: dict[str, int] = {}

    def number(text: str) -> int:
        return known.setdefault(text, len(known))

    pairs, instructions = [], {}
    for source, name in enumerate(sources.EMBEDDING):
        for instruction, query, passage, others in sources.pairs(name):
            if query.strip() and passage.strip():
                instructions[source] = number(instruction)
                pairs.append((source, number(query), number(passage)))
                for other in others:
                    number(other)
    for name in sources.GENERATIVE:
        for text in _texts(sources.rows("generative", name)):
            number(text)
    found = tokenizer.encode_batch_fast(list(known), add_special_tokens=False)
    ids = [np.array(one.ids[:LONGEST], dtype=np.uint16) for one in found]
    sources.WORK.mkdir(parents=True, exist_ok=True)
    np.savez(
        sources.WORK / "texts.npz",
        ids=np.concatenate(ids),
        starts=np.cumsum([0, *map(len, ids)], dtype=np.int64),
        pairs=np.array(pairs, dtype=np.int32),
        instructions=np.array([instructions[source] for source in range(len(sources.EMBEDDING))], dtype=np.int32),
        weights=np.array([most for most in sources.EMBEDDING.values()], dtype=np.float32),
    )
    print(f"{len(ids):,} texts, {sum(map(len, ids)):,} tokens, {len(pairs):,} pairs")


def _texts(rows: Iterable[dict[str, list[str]]]) -> Iterable[str]:
    for row in rows:
        yield from (text for text in row["text"] if len(text) > 20)


if __name__ == "__main__":
    main()
