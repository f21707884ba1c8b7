"""grit-mlx beside other programs, with the same weights and the same texts, in turns in one run.

    python benchmarks/peers.py --model FOLDER --gguf FILE [--sides NAME...] [--python NAME=PYTHON...] [--rounds N]

FOLDER is a Llama model as transformers and mlx-lm read it, FILE the same weights for llama.cpp
(``benchmarks/peers/widen_gguf.py`` makes one in float16). Each side runs in a process and an environment of its own:
``--python`` names its interpreter, and without one an environment is made of ``benchmarks/peers/NAME.txt``. Every side
computes with one thread, embeds causally (only GritLM's own code does otherwise elsewhere) and writes greedily.

Ratios are of CPU seconds, which other work on the machine changes least. On Linux the system's OpenBLAS is loaded for
mlx-lm as well; with the BLAS in mlx's wheel it would be many times slower.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common import CORPORA, corpus, machine, save  # before mlx, to load the fast BLAS

# isort: split
import numpy as np
from tokenizers import Tokenizer

HERE = Path(__file__).parent / "peers"
OURS = "grit"
# Each side's script, and whether it embeds and writes.
SIDES = {
    OURS: ("grit.py", True, True),
    "mlx_lm": ("mlx_lm_side.py", False, True),
    "llama": ("llama_side.py", True, True),
    "gritlm": ("gritlm_side.py", True, True),
    "sentence-transformers": ("sentence_transformers_side.py", True, False),
}
HERE_ALREADY = (OURS, "mlx_lm")  # in the environment of this script
OPENBLAS = "libopenblas.so.0"
CHAT_TOKENS = 64
QUESTION = "\n\nWhich of these passages is about the sea? Answer in one sentence."


class Side:
    """A process that does one side's work."""

    def __init__(self, name: str, python: str, options: argparse.Namespace) -> None:
        self.name = name
        script, self.embeds, self.writes = SIDES[name]
        threads = {f"{library}_NUM_THREADS": str(options.threads) for library in ("OMP", "OPENBLAS", "MKL")}
        environment = {**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        if name == "mlx_lm" and sys.platform == "linux":
            environment["LD_PRELOAD"] = OPENBLAS
        self._process = subprocess.Popen(
            [python, script],
            cwd=HERE,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            text=True,
        )
        loaded = self.call("load", model=str(options.model), gguf=str(options.gguf), threads=options.threads)
        self.versions = loaded["versions"]

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """What the side answers."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"call": name, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            sys.exit(f"{self.name} failed at {name}: {answer['error']} (--verbose shows more)")
        return dict(answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def python_of(name: str, given: dict[str, str]) -> str:
    """The interpreter of a side's environment, which is made if none is given."""
    if name in given:
        return given[name]
    if name in HERE_ALREADY:
        return sys.executable
    folder = HERE / ".environments" / name
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", HERE / f"{name}.txt"], check=True)
    return str(python)


# What is measured. Each yields the name of a row, and gives every side the same.


def embedding(sides: Sequence[Side], texts: list[str]) -> dict[str, Any]:
    """Texts of mixed lengths; and how near the vectors are to ours."""
    answers = {side.name: side.call("embed", texts=texts) for side in sides if side.embeds}
    vectors = {name: np.array(answer["vectors"]) for name, answer in answers.items()}
    unit = {name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in vectors.items()}
    return {
        name: {**answer["all"], "worst_cosine": float((unit[name] * unit[OURS]).sum(axis=1).min())}
        for name, answer in answers.items()
    }


def prompt(sides: Sequence[Side], tokens: list[int], count: int) -> dict[str, Any]:
    """A prompt's first token, and the tokens after it."""
    answers = {side.name: side.call("prompt", tokens=tokens, count=count) for side in sides if side.writes}
    return answered(answers)


def answered(answers: dict[str, Any]) -> dict[str, Any]:
    """Times to the first token and of all, and whether the text is ours."""
    return {
        name: {
            "first_seconds": answer["first"]["seconds"],
            "first_cpu_seconds": answer["first"]["cpu_seconds"],
            **answer["all"],
            "same_text": answer["text"].strip() == answers[OURS]["text"].strip(),
        }
        for name, answer in answers.items()
    }


def chats(sides: Sequence[Side], prompts: list[list[int]], count: int) -> dict[str, Any]:
    """Many prompts at once."""
    answers = {side.name: side.call("chats", prompts=prompts, count=count) for side in sides if side.writes}
    ours = [text.strip() for text in answers[OURS]["texts"]]
    return {
        name: {
            **answer["all"],
            "same_text": sum(one.strip() == other for one, other in zip(answer["texts"], ours, strict=True))
            / len(ours),
        }
        for name, answer in answers.items()
    }


def document(sides: Sequence[Side], text: str, tokens: list[int], question: list[int], count: int) -> dict[str, Any]:
    """A document that is read once, and a question about it."""
    rows = {}
    for side in sides:
        if side.writes:
            kept = side.call("remember", document=text, tokens=tokens)
            answer = side.call("ask", question=question, count=count)
            rows[side.name] = {
                "remember_cpu_seconds": kept["all"]["cpu_seconds"],
                "first_seconds": answer["first"]["seconds"],
                "first_cpu_seconds": answer["first"]["cpu_seconds"],
                **answer["all"],
            }
    return rows


def rows(sides: Sequence[Side], options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of the table, once."""
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    texts = [text for name in CORPORA for text in corpus(name, 60)]
    np.random.default_rng(0).shuffle(texts)
    ids = tokenizer.encode(" ".join(texts), add_special_tokens=False).ids

    def ready(task: str) -> None:
        for side in sides:
            if side.name == "llama":
                side.call("ready", task=task, chats=options.chats)

    ready("embed")
    chosen = [cut(tokenizer, text) for text in texts[: options.texts]]
    yield f"embedding, {len(chosen)} texts of mixed lengths", embedding(sides, chosen)
    ready("prompt")
    for length in options.prompts:
        yield f"prompt of {length} tokens, {options.tokens} new", prompt(sides, ids[:length], options.tokens)
    ready("chats")
    prompts = [ids[at : at + CHAT_TOKENS] for at in range(0, options.chats * CHAT_TOKENS, CHAT_TOKENS)]
    yield f"{options.chats} chats of {CHAT_TOKENS} tokens, {options.tokens} new", chats(sides, prompts, options.tokens)
    ready("prompt")
    text = tokenizer.decode(ids[: options.document])
    read = tokenizer.encode(text, add_special_tokens=False).ids
    question = tokenizer.encode(QUESTION, add_special_tokens=False).ids
    yield (
        f"question about a cached document of {len(read)} tokens, {options.tokens} new",
        document(sides, text, read, question, options.tokens),
    )


def cut(tokenizer: Any, text: str) -> str:
    """A text of at most 500 tokens: how longer ones are cut differs between the sides."""
    return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids[:500]))


def joined(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of several rounds, and how many times our CPU seconds each side took."""
    found: dict[str, Any] = {}
    for name in rounds[0]:
        measures = [one[name] for one in rounds]
        found[name] = {key: median(float(one[key]) for one in measures) for key in measures[0]}
    for name, row in found.items():
        for key in ("cpu_seconds", "first_cpu_seconds", "remember_cpu_seconds"):
            if key in row and name != OURS:
                row[f"{key.removesuffix('_seconds')}_ratio"] = round(row[key] / found[OURS][key], 3)
        found[name] = {key: round(value, 4) for key, value in row.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gguf", type=Path, help="the same weights for llama.cpp, which is left out without them")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--python", nargs="+", default=[], metavar="NAME=PYTHON", help="interpreters of sides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--prompts", type=int, nargs="+", default=[32, 512, 4000])
    parser.add_argument("--chats", type=int, default=16)
    parser.add_argument("--document", type=int, default=4000)
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of each answer")
    parser.add_argument("--name", default="", help="of the model, in the results")
    parser.add_argument("--verbose", action="store_true", help="show what the sides write to stderr")
    options = parser.parse_args()
    options.model = options.model.resolve()
    options.gguf = options.gguf and options.gguf.resolve()
    given = dict(one.split("=", 1) for one in options.python)
    names = [name for name in SIDES if name in {*options.sides, OURS} and (name != "llama" or options.gguf)]
    sides = [Side(name, python_of(name, given), options) for name in names]
    rounds: dict[str, list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        for name, row in rows(sides if number % 2 == 0 else sides[::-1], options):
            rounds.setdefault(name, []).append(row)
            print(name, json.dumps(joined([row])), file=sys.stderr, flush=True)
    save(
        f"peers-{machine()['device']}",
        {
            "model": options.name or options.model.name,
            "threads": options.threads,
            "rounds": options.rounds,
            "load": round(os.getloadavg()[0], 1),
            "versions": {side.name: side.versions for side in sides},
            "rows": {name: joined(found) for name, found in rounds.items()},
        },
    )
    for side in sides:
        side.close()


if __name__ == "__main__":
    main()
