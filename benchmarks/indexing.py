"""Indexing a documentation tree: this commit and an earlier one, in one run on the same machine.

    git worktree add ../before COMMIT
    python benchmarks/indexing.py [FOLDER] --before ../before [--model FOLDER] [--every N]

FOLDER is Python's documentation by default (Debian's package python3-doc). Each side indexes the same files in a
process of its own, started in turn, with the model that is named or with the grit-tiny that its commit brings. The
commits cut files differently, so files and characters a second are compared besides passages. CPU seconds are of all
threads; loading is not counted. Memory is resident memory at a tenth of the bytes and at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = Path("/usr/share/doc/python3.11/html")
HERE = Path(__file__).parents[1]
MODELS = ("grit_mlx/builtin/grit-tiny", "grit_mlx/models/grit-tiny")

# Runs with each commit's own code, and may use only what both have.
SIDE = """
import json, sys, tempfile, time
import lancedb
import grit_mlx
from grit_mlx import GritLM
from grit_mlx.rag import Store

def memory(key):
    line = next(line for line in open("/proc/self/status") if line.startswith(key))
    return round(int(line.split()[1]) / 1024)

model_folder, files = sys.argv[1:]
model = GritLM(model_folder, mode="embedding")
marks = []
with tempfile.TemporaryDirectory() as folder:
    store = Store(folder, model)
    Store(folder + "/warm", model).index([model_folder + "/README.md"])
    held = memory("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    report = store.index([files], progress=lambda done, total: marks.append((done / max(1, total), memory("VmRSS"))))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    table = lancedb.connect(folder).open_table("passages")
    passages = table.search().select(["content"]).limit(10**7).to_arrow()["content"]
    print(json.dumps({
        "code": grit_mlx.__file__, "files": report.added, "passages": len(passages),
        "characters": sum(map(len, passages.to_pylist())),
        "seconds": round(wall, 1), "cpu_seconds": round(cpu, 1),
        "resident_mb_before": held,
        "resident_mb_at_a_tenth": next((mb for done, mb in marks if done >= 0.1), None),
        "resident_mb_at_the_end": memory("VmRSS"), "peak_mb": memory("VmHWM"),
    }))
"""


def measured(code: Path, files: Path, model: Path | None) -> dict[str, Any]:
    """Index some files with the code of a commit."""
    environment = {**os.environ, "PYTHONPATH": str(code)}
    model = model or next(code / path for path in MODELS if (code / path).is_dir())
    command = [sys.executable, "-c", SIDE, str(model), str(files)]
    done = subprocess.run(command, env=environment, cwd=files, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if not Path(found.pop("code")).is_relative_to(code):
        sys.exit(f"{code} was not used; run this benchmark with an interpreter that finds grit_mlx by PYTHONPATH.")
    for name in ("files", "passages", "characters"):
        for clock in ("seconds", "cpu_seconds"):
            found[f"{name}_per_{clock.removesuffix('s')}"] = round(found[name] / found[clock], 2)
    print(json.dumps(found), file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    parser.add_argument("--before", type=Path, required=True, help="worktree of the earlier commit")
    parser.add_argument("--model", type=Path, help="folder of a model that both commits load")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="index each Nth file only")
    options = parser.parse_args()
    pages = [path for path in sorted(options.folder.rglob("*.html")) if path.is_file() and not path.is_symlink()]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=options.before, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    model = None if options.model is None else options.model.resolve()
    with TemporaryDirectory() as name:
        for path in pages[:: options.every]:
            copy = Path(name) / path.relative_to(options.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        before = measured(options.before.resolve(), Path(name), model)
        now = measured(HERE, Path(name), model)
    names = [name for name in now if "_per_" in name]
    ratios = {name: round(now[name] / before[name], 2) for name in names}
    from common import machine, save  # after the measurements: it loads mlx

    results = {
        "model": "each commit's own" if model is None else model.name,
        "before": {"commit": commit, **before},
        "now": now,
        "now_to_before": ratios,
    }
    save(f"indexing-{machine()['device']}", results)


if __name__ == "__main__":
    main()
