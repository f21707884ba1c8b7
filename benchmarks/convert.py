"""Memory and time of ``grit convert`` and of ``mlx_lm.convert``, on the same synthetic checkpoints in the same run.

    python benchmarks/convert.py [--sizes 0.5 1 2 4] [--folder DIR]

The checkpoints have random bfloat16 weights in several shards and are created by the script. Each conversion runs in
its own process; memory is the peak resident set beyond what the process has after its imports. ``mlx_lm`` and
``uniform`` quantise to 4 bits in the same way, and the script checks that their results are identical; ``grit`` is our
default recipe. These three prove nothing. ``proof`` is what users run: the default recipe, and source and result
compared. ``grit`` and ``proof`` run with OpenBLAS and without. The goals: the proof adds at most 100 MB, and with it a
conversion takes at most three times as long as without.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from checkpoints import SHAPES, make_checkpoint  # before mlx, to load the fast BLAS
from common import RESULTS, machine, save

# isort: split
import mlx.core as mx

# What is measured: which converter or recipe, whether source and result are compared, and the BLAS.
WAYS = {
    "mlx_lm": ("mlx_lm", False, None),
    "uniform": ("uniform", False, None),
    "grit": ("grit", False, None),
    "proof": ("grit", True, None),
    "grit_bundled": ("grit", False, "bundled"),
    "proof_bundled": ("grit", True, "bundled"),
}
PROOFS = {"proof": "grit", "proof_bundled": "grit_bundled"}
GOAL_MB, GOAL_RATIO = 100, 3.0

CHILD = """
import json, resource, sys, time
source, target, how, proof = sys.argv[1:]
if how == "mlx_lm":
    import mlx_lm.convert, mlx_lm
    from mlx_lm.convert import convert
    options = dict(hf_path=source, mlx_path=target, quantize=True, q_bits=4, q_group_size=64)
else:
    from grit_mlx.convert import convert
    options = dict(source=source, output=target, quantize=True, bits=4, group_size=64, recipe=how)
    options |= {} if proof == "True" else {"verify": False}
def peak():
    try:  # on Linux ru_maxrss includes the parent's memory
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
imports, began, worked = peak(), time.perf_counter(), time.process_time()
convert(**options)
result = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}
print(json.dumps({**result, "imports": imports, "peak": peak()}))
"""


def measure(source: Path, target: Path, way: str) -> dict[str, float]:
    shutil.rmtree(target, ignore_errors=True)
    how, proof, blas = WAYS[way]
    environment = {name: value for name, value in os.environ.items() if name != "GRIT_BLAS"}
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(source), str(target), how, str(proof)],
        env=environment if blas is None else {**environment, "GRIT_BLAS": blas},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    result = json.loads(done.stdout.splitlines()[-1])
    return {
        "seconds": round(result["seconds"], 2),
        "cpu_seconds": round(result["cpu_seconds"], 2),
        "seconds_with_imports": round(time.perf_counter() - began, 2),
        "peak_mb_beyond_imports": round((result["peak"] - result["imports"]) / 1e6),
        "imports_mb": round(result["imports"] / 1e6),
    }


def same_weights(first: Path, second: Path) -> bool:
    """Whether two folders hold the same tensors, bit for bit, regardless of sharding."""

    def load(folder: Path) -> dict[str, mx.array]:
        arrays: dict[str, mx.array] = {}
        for path in folder.glob("model*.safetensors"):
            loaded: Any = mx.load(str(path))
            arrays.update(loaded)
        return arrays

    a, b = load(first), load(second)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and mx.array_equal(a.pop(name).view(mx.uint8), b.pop(name).view(mx.uint8)).item()
        for name in list(a)
    )


def measured(folder: Path, repeat: int) -> dict[str, Any]:
    """The least time and the most memory of each way, and of each proof what it adds."""
    # Alternately, so that other load on the machine affects all of them.
    runs = [{way: measure(folder / "source", folder / way, way) for way in WAYS} for _ in range(repeat)]
    row: dict[str, Any] = {
        way: {key: (max if "mb" in key else min)(run[way][key] for run in runs) for key in runs[0][way]} for way in WAYS
    }
    row["added"] = {
        proof: {
            "mb": row[proof]["peak_mb_beyond_imports"] - row[without]["peak_mb_beyond_imports"],
            "time_ratio": round(min(run[proof]["seconds"] / run[without]["seconds"] for run in runs), 2),
            "cpu_ratio": round(row[proof]["cpu_seconds"] / row[without]["cpu_seconds"], 2),
        }
        for proof, without in PROOFS.items()
    }
    row["same_bytes"] = same_weights(folder / "mlx_lm", folder / "uniform")
    return row


def judged(rows: list[dict[str, Any]]) -> str:
    """How the proof's cost is to the goals."""
    added = [(row["kind"], row["gb"], proof, cost) for row in rows for proof, cost in row["added"].items()]
    lines = [
        f"{name}: {max(cost[key] for *_, cost in added)} at most; goal {goal}"
        for name, key, goal in (
            ("MB that the proof adds", "mb", GOAL_MB),
            ("time with the proof to time without", "time_ratio", GOAL_RATIO),
            ("the same of CPU time", "cpu_ratio", GOAL_RATIO),
        )
    ]
    missed = [case for case in added if case[-1]["mb"] > GOAL_MB or case[-1]["time_ratio"] > GOAL_RATIO]
    return "\n".join([*lines, *(f"missed: {case}" for case in missed)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.5, 1, 2, 4], help="sizes of the checkpoints in GB")
    parser.add_argument("--kinds", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--folder", type=Path, help="folder for the checkpoints (default: a temporary one)")
    parser.add_argument(
        "--repeat", type=int, default=1, help="number of runs; keeps the shortest time, the most memory"
    )
    parser.add_argument("--merge", action="store_true", help="keep the stored rows of other sizes and kinds")
    arguments = parser.parse_args()
    name = f"convert-{machine()['device']}"
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        for kind in arguments.kinds:
            for size in arguments.sizes:
                folder = Path(temporary)
                nbytes = make_checkpoint(folder / "source", kind, SHAPES[kind], size=size * 1e9)
                row = {"kind": kind, "gb": round(nbytes / 1e9, 2), **measured(folder, arguments.repeat)}
                print(json.dumps(row), file=sys.stderr, flush=True)
                rows.append(row)
                for path in folder.iterdir():
                    shutil.rmtree(path)
    repeat = arguments.repeat
    if arguments.merge:
        made = {(row["kind"], row["gb"]) for row in rows}
        stored = json.loads((RESULTS / f"{name}.json").read_text())
        rows += [row for row in stored["rows"] if (row["kind"], row["gb"]) not in made]
        rows.sort(key=lambda row: (row["kind"], row["gb"]))
        repeat = min(repeat, stored["repeat"])
    print(judged(rows), file=sys.stderr)
    save(name, {"repeat": repeat, "rows": rows})


if __name__ == "__main__":
    main()
