"""Train the student: python recipes/grit-tiny/distil.py --seconds 300

Reads runs/grit-tiny/texts.npz (make_texts.py) and the teacher, and writes runs/grit-tiny/start: a Mistral folder of
float32 weights without its tokenizer. Five minutes of a large GPU; on a CPU this takes days.

Each batch holds pairs of query and passage from four sources, or spans of texts. The losses:

- the student's vectors are the teacher's (cosine),
- so are the similarities between all texts of the batch (Kullback-Leibler),
- of pairs, the query's passage is the most similar one (InfoNCE). The teacher does not know the training questions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from student import CLS, EMBED, SEP, USER, Beginning, Shape, Student
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel

QUESTION = "Given a question, retrieve passages that answer it"
TEMPERATURE = 0.05
# Lengths of the windows of passages, and how often each is drawn. All passages of a batch have the same maximum.
WINDOWS = {32: 0.15, 64: 0.25, 128: 0.3, 200: 0.2, 384: 0.1}
QUERY = 48
SPANS = 0.35  # share of batches
GROUPS = 4  # sources in a batch of pairs
BARE = 0.3  # of batches of pairs, both sides of which are texts without instructions
ALIKE = 0.92  # passages that the teacher finds this similar are not each other's wrong answers


@dataclass(frozen=True)
class Texts:
    """All texts, as the teacher's tokens.

    Attributes:
        ids: all texts, one after the other.
        starts: where each begins; one more than texts.
        pairs: ``(N, 3)``: the number of the source, of the query and of the passage, in the order of the sources.
        instructions: the text of each source's instruction.
        weights: of the sources.
    """

    ids: np.ndarray
    starts: np.ndarray
    pairs: np.ndarray
    instructions: np.ndarray
    weights: np.ndarray

    def of(self, number: int) -> np.ndarray:
        return self.ids[self.starts[number] : self.starts[number + 1]]


@dataclass(frozen=True)
class Batch:
    """Rows of two sides: queries and passages, or spans. ``pairs``: whether a query's passage is the right answer."""

    left: list[np.ndarray]
    right: list[np.ndarray]
    pairs: bool
    instruction: np.ndarray | None  # (of the left side) None: none
    keys: np.ndarray  # of the passages: equal ones are the same


class Batches:
    def __init__(self, texts: Texts, question: list[int], tokens: int, seed: int) -> None:
        self.texts, self.tokens, self.rng = texts, tokens, np.random.default_rng(seed)
        self.question = np.array(question)
        bounds = np.searchsorted(texts.pairs[:, 0], np.arange(len(texts.weights) + 1))
        self.rows = [texts.pairs[a:b] for a, b in pairwise(bounds)]
        lengths = np.diff(texts.starts)
        self.long = np.flatnonzero(lengths >= 24)
        share = np.minimum(lengths[self.long], 200).astype(np.float64)
        self.share = np.cumsum(share / share.sum())

    def draw(self) -> Batch:
        longest = int(self.rng.choice(list(WINDOWS), p=list(WINDOWS.values())))
        count = min(2048, self.tokens // (longest + QUERY // 2))
        return self._spans(count, longest) if self.rng.random() < SPANS else self._pairs(count, longest)

    def _pairs(self, count: int, longest: int) -> Batch:
        chances = self.texts.weights / self.texts.weights.sum()
        sources = self.rng.choice(len(chances), GROUPS, replace=False, p=chances)
        bare = self.rng.random() < BARE
        chosen = []
        for source in sources:
            rows = self.rows[source]
            chosen.append(rows[self.rng.choice(len(rows), min(len(rows), count // GROUPS), replace=False)])
        rows = np.concatenate(chosen)
        own = self.texts.of(int(self.texts.instructions[sources[0]]))
        instruction = None if bare else self.question if self.rng.random() < 0.7 else own
        left = [self._window(self.texts.of(query), QUERY if longest > QUERY else longest) for query in rows[:, 1]]
        right = [self._window(self.texts.of(passage), longest) for passage in rows[:, 2]]
        return Batch(left, right, True, instruction, rows[:, 2])

    def _window(self, ids: np.ndarray, longest: int) -> np.ndarray:
        """The beginning mostly, else from anywhere."""
        spare = len(ids) - longest
        begin = int(self.rng.integers(0, spare + 1)) if spare > 0 and self.rng.random() < 0.25 else 0
        return ids[begin : begin + longest]

    def _spans(self, count: int, longest: int) -> Batch:
        numbers = self.long[np.searchsorted(self.share, self.rng.random(count))]
        left, right = [], []
        for number in numbers:
            ids = self.texts.of(int(number))
            begin = int(self.rng.integers(0, max(1, len(ids) - longest + 1)))
            window = ids[begin : begin + longest]
            size = int(self.rng.integers(4, max(5, min(QUERY, len(window) // 2))))
            at = int(self.rng.integers(0, len(window) - size + 1))
            left.append(window[at : at + size])
            right.append(window)
        instruction = self.question if self.rng.random() < 0.3 else None
        return Batch(left, right, False, instruction, numbers)


def padded(rows: list[np.ndarray], before: list[int], after: list[int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, which are the text's own and which are read at all, all ``(B, T)``; T is a multiple of 8."""
    width = -(-(max(map(len, rows)) + len(before) + len(after)) // 8) * 8
    tokens = np.zeros((len(rows), width), dtype=np.int32)
    lengths = np.array([len(row) for row in rows])
    tokens[:, : len(before)] = before
    for line, row in zip(tokens, rows, strict=True):
        end = len(before) + len(row)
        line[len(before) : end] = row
        line[end : end + len(after)] = after
    place = np.arange(width)[None]
    own = (place >= len(before)) & (place < len(before) + lengths[:, None])
    read = place < len(before) + lengths[:, None] + len(after)
    found = [torch.from_numpy(one) for one in (tokens, own, read)]
    if device == "cuda":  # pinned, a copy does not wait for what the GPU still computes
        found = [one.pin_memory().to(device, non_blocking=True) for one in found]
    return found[0], found[1], found[2]


def losses(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], batch: Batch) -> dict[str, Tensor]:
    ours, theirs = torch.cat(student), torch.cat(teacher)
    found = {"cosine": (1 - (ours * theirs).sum(1)).mean()}
    itself = torch.eye(len(ours), dtype=torch.bool, device=ours.device)
    wanted = (theirs @ theirs.T / TEMPERATURE).masked_fill(itself, -1e4)
    given = (ours @ ours.T / TEMPERATURE).masked_fill(itself, -1e4)
    target = wanted.softmax(1)
    found["similarities"] = (target * (wanted.log_softmax(1) - given.log_softmax(1))).sum(1).mean()
    if batch.pairs:
        keys = torch.from_numpy(batch.keys).to(ours.device)
        right = torch.arange(len(keys), device=ours.device)
        same = (keys[:, None] == keys[None]) | (teacher[1] @ teacher[1].T > ALIKE)
        same.fill_diagonal_(False)
        logits = (student[0] @ student[1].T / TEMPERATURE).masked_fill(same, -1e4)
        found["pairs"] = (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2
    return found


class Trainer:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = options.device
        self.half = torch.float16 if self.device == "cuda" else torch.bfloat16
        found = np.load(options.texts)
        texts = Texts(**{name: found[name] for name in found.files})
        folder = options.teacher or _teacher()
        self.teacher = AutoModel.from_pretrained(folder).float().eval()
        tokenizer = _tokenizer(folder)
        question = tokenizer.encode(QUESTION, add_special_tokens=False).ids
        self.batches = Batches(texts, question, options.tokens, options.seed)
        shape = Shape(layers=tuple(options.layers), neurons=options.neurons)
        torch.manual_seed(options.seed)
        if options.random:
            self.student = _random(self.teacher, shape, self._sample())
        else:
            self.student = Beginning(self.teacher, shape, *self._sample()).student()
        self.teacher.to(self.device)
        self.student.to(self.device)
        table = [value for name, value in self.student.named_parameters() if "embed" in name or value.ndim == 1]
        rest = [value for name, value in self.student.named_parameters() if "embed" not in name and value.ndim == 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": table, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.01}],
            lr=options.rate,
            betas=(0.9, 0.98),
            fused=self.device == "cuda",
        )
        self.average = {name: value.detach().clone() for name, value in self.student.named_parameters()}

    def _sample(self) -> tuple[Tensor, Tensor]:
        rows = [self.batches.draw().right[0] for _ in range(200)]
        tokens, _, read = padded(rows, [CLS, EMBED], [], "cpu")
        return tokens, read

    def run(self) -> None:
        began = time.perf_counter()
        self.step, seen = 0, 0
        sums: dict[str, list[float]] = {}
        while True:
            elapsed = time.perf_counter() - began
            done = self.step / self.options.steps if self.options.steps else elapsed / self.options.seconds
            if done >= 1:
                break
            rate = self.options.rate * min(1.0, self.step / 100, max(0.02, (1 - done) / 0.8))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batch = self.batches.draw()
            found = self._losses(batch)
            weights = {"cosine": 2.0, "similarities": 1.0, "pairs": self.options.pairs}
            sum(weights[name] * value for name, value in found.items()).backward()  # type: ignore[union-attr]
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self._keep_average()
            seen += sum(map(len, batch.left)) + sum(map(len, batch.right))
            for name, value in found.items():
                sums.setdefault(name, []).append(value.detach())  # type: ignore[arg-type]
            if self.step % self.options.report == 0:
                means = ", ".join(f"{name} {torch.stack(values).mean():.4f}" for name, values in sums.items())  # type: ignore[arg-type]
                print(f"{elapsed:.0f} s, step {self.step}, {seen / 1e6:.1f} M tokens, {means}", flush=True)
                sums = {}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        prefix = [CLS, EMBED] if batch.instruction is None else [CLS, USER, *batch.instruction.tolist(), EMBED]
        with torch.autocast(self.device, torch.bfloat16, enabled=not self.options.exact):
            ours = tuple(
                self.student(*padded(rows, before, [], self.device))
                for rows, before in ((batch.left, prefix), (batch.right, [CLS, EMBED]))
            )
        with torch.no_grad(), torch.autocast(self.device, self.half, enabled=not self.options.exact):
            theirs = tuple(self._taught(rows) for rows in (batch.left, batch.right))
        return losses(ours, theirs, batch)  # type: ignore[arg-type]

    def _taught(self, rows: list[np.ndarray]) -> Tensor:
        tokens, _, read = padded(rows, [CLS], [SEP], self.device)
        states = self.teacher(input_ids=tokens, attention_mask=read.long()).last_hidden_state.float()
        return functional.normalize((states * read[..., None]).sum(1), dim=-1)

    @torch.no_grad()
    def _keep_average(self) -> None:
        share = max(0.004, 1 / self.step)
        values = [value.detach() for value in self.student.parameters()]
        torch._foreach_lerp_(list(self.average.values()), values, share)

    def save(self, folder: Path) -> None:
        self.student.load_state_dict(self.average)
        self.student.float().cpu()
        folder.mkdir(parents=True, exist_ok=True)
        half = self.options.half
        weights = {
            name: (value.half() if half else value).contiguous() for name, value in self.student.weights().items()
        }
        config = self.student.shape.config()
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        projection = self.student.projection.weight.detach()
        save_file({"weight": projection.half().contiguous()}, folder / "projection.safetensors")


def _random(teacher: Any, shape: Shape, sample: tuple[Tensor, Tensor]) -> Student:
    """Only the teacher's token table."""
    begun = Beginning(teacher, shape, *sample).student()
    student = Student(shape)
    for layer in student.layers:
        for value in layer.parameters():
            if value.ndim == 2:
                torch.nn.init.normal_(value, std=0.02)
    student.embed_tokens.load_state_dict(begun.embed_tokens.state_dict())
    torch.nn.init.zeros_(student.projection.weight)
    student.projection.weight.data[:, : shape.teacher] = torch.eye(shape.teacher)
    return student


def _teacher() -> Path:
    import sources

    return sources.teacher()


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.no_padding()
    found.no_truncation()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, default=Path("runs/grit-tiny/texts.npz"))
    parser.add_argument("--teacher", type=Path, help="a folder; the installed package without it")
    parser.add_argument("--output", type=Path, default=Path("runs/grit-tiny/start"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 4, 5])
    parser.add_argument("--neurons", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=131_072, help="of a batch")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--steps", type=int, help="instead of seconds")
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--pairs", type=float, default=0.2, help="weight of the right passage")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=int, default=100)
    parser.add_argument("--random", action="store_true", help="begin with random layers")
    parser.add_argument("--exact", action="store_true", help="without half precision")
    parser.add_argument("--half", action="store_true", help="write float16")
    options = parser.parse_args()
    trainer = Trainer(options)
    trainer.run()
    trainer.save(options.output)
    print(f"{options.output}: {trainer.step} steps, process {os.getpid()}")


if __name__ == "__main__":
    main()
