"""One process against several of ``mlx.launch`` on one machine: equality, and what a command takes.

    python benchmarks/processes.py MODEL [--texts FILE]

On a machine whose cores the processes share nothing gets faster; what is measured is that results are the same, and
what the exchange costs. On several machines each process has its own device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from common import corpus, save

GRIT = [sys.executable, "-c", "import sys; from grit_mlx.cli.main import main; sys.exit(main())"]
PROMPT = "The capital of France is"
TRAINING = [
    "--iters",
    "3",
    "--steps-per-report",
    "1",
    "--batch-size",
    "4",
    "--steps-per-eval",
    "0",
    "--mode",
    "embedding",
]


def launched(size: int, *arguments: str) -> tuple[str, float]:
    """What ``grit`` prints in so many processes, and its seconds."""
    start = "from mlx._distributed_utils.launch import main; main()"
    launcher = [sys.executable, "-c", start, "-n", str(size), "-p", "29300", "--"] if size > 1 else []
    began = time.perf_counter()
    done = subprocess.run(
        [*launcher, *GRIT, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    seconds = time.perf_counter() - began
    if "error:" in done.stderr or done.returncode:
        sys.exit(done.stderr)
    return done.stdout, round(seconds, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--texts", type=Path, help="a text a line; default: a development corpus of ../shared")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 4])
    asked = parser.parse_args()
    lines = asked.texts.read_text().splitlines() if asked.texts else corpus("xquad_en")
    results: dict[str, object] = {"model": Path(asked.model).name, "texts": asked.count}
    with TemporaryDirectory() as name:
        folder = Path(name)
        texts = folder / "texts.txt"
        texts.write_text("".join(" ".join(line.split())[:600] + "\n" for line in lines[: asked.count]))

        def embedded(size: int, *more: str) -> tuple[np.ndarray, bytes, float]:
            output = folder / "v.npy"
            _, seconds = launched(size, "embed", str(texts), "-m", asked.model, "-o", str(output), "-q", *more)
            return np.load(output), output.read_bytes(), seconds

        whole, content, seconds = embedded(1)
        results["embed"] = [{"processes": 1, "seconds": seconds}]
        for size in asked.sizes:
            _, other, seconds = embedded(size)
            results["embed"].append({"processes": size, "seconds": seconds, "bytes_equal": other == content})  # type: ignore[attr-defined]
        split = []
        answer, seconds = launched(1, "generate", PROMPT, "--raw", "-m", asked.model, "--max-tokens", "16", "-q")
        split.append({"processes": 1, "shard": None, "generate_seconds": seconds, "answer": answer})
        for shard in ("tensor", "pipeline"):
            for size in asked.sizes:
                vectors, _, seconds = embedded(size, "--shard", shard)
                text, answered = launched(
                    size, "generate", PROMPT, "--raw", "-m", asked.model, "--max-tokens", "16", "-q", "--shard", shard
                )
                split.append(
                    {
                        "processes": size,
                        "shard": shard,
                        "largest_difference": float(np.abs(vectors - whole).max()),
                        "embed_seconds": seconds,
                        "generate_seconds": answered,
                        "same_answer": text == answer,
                    }
                )
        results["split"] = split
        results["training"] = training(asked.model, folder, lines)
    save("processes", results)
    print(json.dumps(results, indent=1))


def training(model: str, folder: Path, lines: list[str]) -> list[dict[str, object]]:
    """The same steps in one process and in two."""
    rows = [{"query": line[:80], "pos": [line[80:240] or line]} for line in lines[:40]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for size in (1, 2):
        adapter = folder / f"adapter-{size}"
        common = ["--data", str(folder / "rows.jsonl"), "--adapter-path", str(adapter), "-q"]
        _, seconds = launched(size, "train", "-m", model, *common, *TRAINING)
        log = [json.loads(line) for line in (adapter / "log.jsonl").read_text().splitlines()]
        steps = [line for line in log if line["kind"] == "train"]
        found.append({"processes": size, "seconds": seconds, "last": steps[-1]})
    return found


if __name__ == "__main__":
    main()
