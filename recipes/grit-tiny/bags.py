"""Token vectors from the teacher, trained as bags of tokens: a text's vector is the weighted mean of its tokens.

    python recipes/grit-tiny/bags.py [--steps 500] [--name bags]

Writes runs/grit-tiny/NAME.npy, (V, D), and prints the development scores before and after. Bags need only look-ups, so
they train in minutes where a transformer would take hours; write_model.py writes them into a transformer that computes
the same.

Each repetition of a word counts less, as in BM25 (words.py). Some dimensions start as random codes of words, weighted
by rarity, so that shared words are detected even if the teacher does not know them.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sources
import torch
import words
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy, embedding_bag, kl_div, log_softmax, normalize, softmax

from grit_mlx.evaluation.metrics import ndcg, spearman
from grit_mlx.evaluation.sets import PairSet, RetrievalSet, load_set

SETS = ("clapnq_dev", "fairytaleqa_val", "pubmedqa", "scitldr_test", "xquad_en", "stsb")
# Maximum tokens of a passage in training, and of any text in evaluation.
LENGTH, EVALUATED = 256, 500

Packed = tuple[torch.Tensor, ...]  # tokens of all texts, start of each text, weight of each token
Encode = Callable[[list[str]], np.ndarray]  # N texts to (N, D)


class Bags:
    """Token lists as one array with offsets; ``same`` is ``words.same_words`` of the tokenizer."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str], length: int, same: np.ndarray) -> None:
        # Do not tokenise characters that cannot be within the first `length` tokens.
        encoded = tokenizer.encode_batch_fast([text[: 12 * length] for text in texts], add_special_tokens=False)
        ids = [one.ids[:length] for one in encoded]
        self.sizes = np.array([len(one) for one in ids])
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.ids = np.fromiter((i for one in ids for i in one), dtype=np.int64, count=self.starts[-1])
        self.texts = np.array([hash(text) for text in texts])
        self.same = same

    def take(self, rows: np.ndarray, rng: np.random.Generator, dropout: float) -> Packed:
        parts = [self.ids[self.starts[row] : self.starts[row + 1]] for row in rows]
        if dropout:
            parts = [kept if len(kept := one[rng.random(len(one)) >= dropout]) else one for one in parts]
        return self._packed(parts)

    def split(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[Packed, Packed]:
        """A span of each text as a query, and the rest or all of the text as its passage (inverse cloze task)."""
        bits, rests = [], []
        for row in rows:
            one = self.ids[self.starts[row] : self.starts[row + 1]]
            width = min(int(rng.integers(4, 20)), max(1, len(one) // 2))
            at = int(rng.integers(0, len(one) - width + 1))
            bit = one[at : at + width]
            kept = bit[rng.random(width) >= 0.3]
            bits.append(kept if len(kept) else bit)
            # The words of a question often do appear in its answer.
            whole = len(one) <= width or rng.random() < 0.4
            rests.append(one if whole else np.concatenate([one[:at], one[at + width :]]))
        return self._packed(bits), self._packed(rests)

    def _packed(self, parts: list[np.ndarray]) -> Packed:
        starts, ids = np.cumsum([0, *map(len, parts[:-1])]), np.concatenate(parts)
        weights = np.concatenate([self._saturated(part) for part in parts])
        return tuple(torch.from_numpy(one) for one in (ids, starts, weights.astype(np.float32)))

    def _saturated(self, part: np.ndarray) -> np.ndarray:
        _, word, counts = np.unique(self.same[part], return_inverse=True, return_counts=True)
        return words.saturation(counts)[word]


def vectors(table: torch.Tensor, bags: Packed) -> torch.Tensor:
    ids, starts, weights = bags
    return normalize(embedding_bag(ids, table, starts, mode="sum", per_sample_weights=weights), dim=1)


def encoder(tokenizer: Tokenizer, table: torch.Tensor, same: np.ndarray) -> Encode:
    """A function that embeds texts with a table."""

    def encode(texts: list[str]) -> np.ndarray:
        bags = Bags(tokenizer, texts, LENGTH, same)
        return vectors(table, bags.take(np.arange(len(texts)), np.random.default_rng(0), 0)).numpy()

    return encode


def initial_table(
    tokenizer: Tokenizer, samples: list[Bags], size: int, codes: int, smoothing: float, seed: int
) -> np.ndarray:
    """The teacher's vectors of single tokens, centred, in principal axes, weighted by rarity (SIF), followed by codes.

    The last ``codes`` dimensions are random, equal for tokens of the same word, and weighted by rarity (IDF).
    """
    rng = np.random.default_rng(seed)
    teacher = np.load(sources.WORK / "teacher-tokens.npy").astype(np.float64)
    teacher -= teacher.mean(0)
    _, _, axes = np.linalg.svd(teacher, full_matrices=False)
    turned = teacher @ axes.T
    own = size - codes
    kept = min(own, turned.shape[1])
    table = np.zeros((len(turned), own))
    table[:, :kept] = turned[:, :kept]
    if own > kept:
        table[:, kept:] = rng.normal(0, 0.02, (len(turned), own - kept))
    counts = sum(np.bincount(one.ids, minlength=len(turned)) for one in samples)
    share = counts / counts.sum()
    weights = smoothing / (smoothing + share)
    # Single bytes and control tokens carry no meaning.
    for piece, number in tokenizer.get_vocab().items():
        if piece.startswith("<0x") or piece in ("<unk>", "<s>", "</s>"):
            weights[number] *= 0.3
    table *= weights[:, None]
    same = words.same_words(tokenizer)
    of_words = np.bincount(same, weights=counts, minlength=len(same))[same]
    rarity = np.log(counts.sum() / 100 / np.maximum(of_words, 3)).clip(0.3)  # assuming about 100 tokens per text
    coded = rng.normal(size=(len(same), codes))[same] * rarity[:, None]
    coded *= np.linalg.norm(table, axis=1).mean() / np.linalg.norm(coded, axis=1).mean()
    return np.concatenate([table, coded], axis=1).astype(np.float32)


def scores(table: np.ndarray, sets: dict[str, tuple]) -> dict[str, float]:  # type: ignore[type-arg]
    weight = torch.from_numpy(table)
    found = {}
    for name, (data, first, second) in sets.items():
        rng = np.random.default_rng(0)
        a, b = (vectors(weight, one.take(np.arange(len(one.sizes)), rng, 0)).numpy() for one in (first, second))
        if isinstance(data, PairSet):
            found[name] = spearman((a * b).sum(1), data.scores)
            continue
        ids, asked = list(data.documents), list(data.queries)
        best = np.argsort(-(a @ b.T), axis=1, kind="stable")[:, :10]
        each = [
            ndcg([ids[i] for i in row], data.relevant[asked[q]])
            for q, row in enumerate(best)
            if data.relevant.get(asked[q])
        ]
        found[name] = float(np.mean(each))
    return found


def told(found: dict[str, float]) -> str:
    retrieval = [value for name, value in found.items() if name != "stsb"]
    parts = " ".join(f"{name} {value:.3f}" for name, value in found.items())
    return f"mean {np.mean(retrieval):.4f} | {parts}"


def load_sets(tokenizer: Tokenizer, same: np.ndarray) -> dict[str, tuple]:  # type: ignore[type-arg]
    found = {}
    for name in SETS:
        data = load_set(sources.DEV / name)
        if isinstance(data, RetrievalSet):
            sides = list(data.queries.values()), list(data.documents.values())
        else:
            sides = data.first, data.second
        found[name] = (data, *(Bags(tokenizer, side, EVALUATED, same) for side in sides))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--size", type=int, default=464)
    parser.add_argument("--codes", type=int, default=256, help="number of dimensions that start as codes of words")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--distillation", type=float, default=1.0)
    parser.add_argument("--sentences", type=float, default=1.0, help="weight of the sentences from teacher.py")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument(
        "--spans", type=float, default=0.3, help="fraction of batches with spans of passages as queries"
    )
    parser.add_argument("--smoothing", type=float, default=3e-4)
    parser.add_argument("--minutes", type=float, default=60.0, help="time limit, to which the schedule adapts")
    parser.add_argument("--rows", type=int, default=30_000, help="maximum rows per source")
    parser.add_argument("--averaged", type=float, default=0.4, help="average the weights after this fraction of steps")
    parser.add_argument("--start", help="continue from runs/grit-tiny/START.npy")
    parser.add_argument("--name", default="bags")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    torch.manual_seed(1)
    tokenizer = Tokenizer.from_file(str(sources.WORK / "tokenizer" / "tokenizer.json"))
    same = words.same_words(tokenizer)
    sets = load_sets(tokenizer, same)
    started = time.perf_counter()
    data = {}
    for name, (most, weight) in sources.EMBEDDING.items():
        cache = sources.WORK / "bags" / f"{name}-{options.rows}.pickle"
        if cache.exists():
            sides = pickle.loads(cache.read_bytes())
        else:
            sample = list(sources.pairs(name, min(most, options.rows)))
            sides = [Bags(tokenizer, [one[i] for one in sample], LENGTH, same) for i in (1, 2)]
            cache.parent.mkdir(exist_ok=True)
            cache.write_bytes(pickle.dumps(sides))
        data[name] = (*sides, min(most, 30_000) * weight)
    print(f"tokenised in {time.perf_counter() - started:.0f} s", flush=True)
    if options.start:
        table = np.load(sources.WORK / f"{options.start}.npy")
    else:
        samples = [one for queries, passages, _ in data.values() for one in (queries, passages)]
        table = initial_table(tokenizer, samples, options.size, options.codes, options.smoothing, 1)
        np.save(sources.WORK / "static.npy", table)
    print("before", told(scores(table, sets)), flush=True)
    weight = torch.nn.Parameter(torch.from_numpy(table.copy()))
    optimizer = torch.optim.Adam([weight], lr=options.rate, betas=(0.9, 0.99))
    names = list(data)
    share = np.array([data[name][2] for name in names])
    share = np.sqrt(share) / np.sqrt(share).sum()
    teacher = Teacher(tokenizer, same, options) if options.distillation else None
    # Each step sees one source and is biased towards it: the mean over many steps is better than any of them.
    mean, taken = np.zeros_like(table), 0
    started = time.perf_counter()
    for step in range(options.steps):
        progress = max(step / options.steps, (time.perf_counter() - started) / 60 / options.minutes)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * progress))
        queries, passages, _ = data[names[rng.choice(len(names), p=share)]]
        rows = rng.choice(len(queries.sizes), min(options.batch, len(queries.sizes)), replace=False)
        if rng.random() < options.spans:
            bits, rests = passages.split(rows, rng)
            q, p = vectors(weight, bits), vectors(weight, rests)
        else:
            q = vectors(weight, queries.take(rows, rng, options.dropout))
            p = vectors(weight, passages.take(rows, rng, options.dropout))
        texts = torch.from_numpy(passages.texts[rows])
        twins = (texts[:, None] == texts[None]) & ~torch.eye(len(rows), dtype=torch.bool)
        logits = (q @ p.T / options.temperature).masked_fill(twins, -torch.inf)
        labels = torch.arange(len(rows))
        loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
        teaching = torch.tensor(0.0)
        if teacher is not None:
            teaching = teacher.loss(weight, rng)
        optimizer.zero_grad()
        (loss + options.distillation * teaching).backward()
        optimizer.step()
        if progress >= options.averaged:
            taken += 1
            mean += (weight.detach().numpy() - mean) / taken
        if (step + 1) % 50 == 0:
            now = (time.perf_counter() - started) / 60
            print(f"{step + 1} {now:.1f} min, loss {loss.item():.3f}, teacher {teaching.item():.4f}", flush=True)
        if (step + 1) % 100 == 0:
            print(step + 1, told(scores(weight.detach().numpy(), sets)), flush=True)
    final = mean if taken else weight.detach().numpy()
    print("after", told(scores(final, sets)), flush=True)
    np.save(sources.WORK / f"{options.name}.npy", final)


class Teacher:
    """The teacher's vectors of some texts, and the distance between our similarities and the teacher's."""

    def __init__(self, tokenizer: Tokenizer, same: np.ndarray, options: argparse.Namespace) -> None:
        self.options = options
        self.sources: list[tuple[Bags, torch.Tensor]] = []
        for path in sorted(Path(sources.WORK / "targets").glob("*.npz")):
            content = np.load(path)
            texts = [*content["query"].tolist(), *content["passage"].tolist()]
            vector = np.concatenate([content["query_vector"], content["passage_vector"]]).astype(np.float32)
            self.sources.append((Bags(tokenizer, texts, LENGTH, same), torch.from_numpy(vector)))
        self.sentences = None
        if options.sentences:
            content = np.load(sources.WORK / "sentences.npz")
            vector = torch.from_numpy(content["vector"].astype(np.float32))
            self.sentences = (Bags(tokenizer, content["text"].tolist(), LENGTH, same), vector)

    def loss(self, weight: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """The distance on a mixed batch, plus that on groups of similar sentences."""
        drawn = [self.sources[i] for i in rng.choice(len(self.sources), 4)]
        mixed = [(*one, rng.choice(len(one[0].sizes), 192, replace=False)) for one in drawn]
        loss = self._distance(weight, mixed, rng)
        if self.sentences is not None:
            starts = rng.choice(len(self.sentences[1]) - 128, 6)
            groups = [(*self.sentences, start + np.arange(128)) for start in starts]
            loss = loss + self.options.sentences * self._distance(weight, groups, rng)
        return loss

    def _distance(
        self, weight: torch.Tensor, batch: list[tuple[Bags, torch.Tensor, np.ndarray]], rng: np.random.Generator
    ) -> torch.Tensor:
        """KL divergence of the softmax of the similarities, plus their mean squared difference."""
        temperature = self.options.temperature
        a = torch.cat([vectors(weight, bags.take(rows, rng, self.options.dropout)) for bags, _, rows in batch])
        t = torch.cat([vector[torch.from_numpy(rows)] for _, vector, rows in batch])
        own = torch.eye(len(a), dtype=torch.bool)
        student, teacher = (a @ a.T).masked_fill(own, -1e4), (t @ t.T).masked_fill(own, -1e4)
        ours, theirs = log_softmax(student / temperature, 1), softmax(teacher / temperature, 1)
        return kl_div(ours, theirs, reduction="batchmean") + 10 * ((student - teacher) ** 2).mean()


if __name__ == "__main__":
    main()
