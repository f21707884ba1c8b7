"""Time of `grit embed README.md` in a new process with the built-in model, with and without OpenBLAS.

    python benchmarks/first_run.py

Best of five. Writes benchmarks/results/first-run-cpu.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

from common import HERE, save

COMMAND = [sys.executable, "-c", "from grit_mlx.cli.main import main; main()"]
REPEATS = 5


def main() -> None:
    found = {}
    with TemporaryDirectory() as folder:
        own = {name: value for name, value in os.environ.items() if name != "GRIT_MODEL"}
        arguments = ["embed", str(HERE.parent / "README.md"), "-o", f"{folder}/vectors.npy", "--quiet"]
        for blas in ("bundled", "libopenblas.so.0"):
            times = []
            for _ in range(REPEATS):
                started = time.perf_counter()
                subprocess.run([*COMMAND, *arguments], check=True, env={**own, "GRIT_BLAS": blas, "GRIT_HOME": folder})
                times.append(time.perf_counter() - started)
            found[blas] = {"best_seconds": round(min(times), 2), "all_seconds": [round(one, 2) for one in times]}
            print(blas, found[blas])
    save("first-run-cpu", {"seconds": found})


if __name__ == "__main__":
    main()
