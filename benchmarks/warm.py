"""How long whole commands take with a running server and without: ``python benchmarks/warm.py [--model NAME]``.

Cold and warm runs alternate, so that both meet the same machine; their outputs must be equal.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_GRIT = [sys.executable, "-c", "from grit_mlx.cli.main import main; main()"]
_TEXT = "The keel gives a boat its grip on the water.\nBread needs flour.\nThe boiler is serviced each October.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "notes.txt").write_text(_TEXT, encoding="utf-8")
        os.environ["GRIT_HOME"] = str(folder / "home")
        model = ["--model", given.model] if given.model else []
        subprocess.run([*_GRIT, "rag", "index", "notes.txt", "--store", "store", *model], cwd=folder, check=True)
        server = subprocess.Popen([*_GRIT, "serve", "--port", "0", *model], cwd=folder, stderr=subprocess.DEVNULL)
        try:
            while not list((folder / "home" / "servers").glob("*.json")):
                time.sleep(0.1)
            measured = _measured(folder, model, given.runs)
        finally:
            server.terminate()
            server.wait()
    from common import machine, save  # after the measurements: it loads mlx

    about = {"model": given.model or "grit-tiny", "runs": given.runs}
    save(f"warm-{machine()['device']}", {**about, "commands": measured})


def _measured(folder: Path, model: list[str], runs: int) -> dict[str, dict[str, float]]:
    commands = {
        "embed a line": ["embed", "-", "--query"],
        "search three lines": ["search", "what keeps a boat steady?", "notes.txt", "--no-cache"],
        "generate 16 tokens": ["generate", "Name a colour.", "--max-tokens", "16"],
        "rag ask": ["rag", "ask", "When is the boiler serviced?", "--store", "store", "--max-tokens", "16"],
    }
    results = {}
    for name, command in commands.items():
        seconds: dict[str, list[float]] = {"cold": [], "warm": []}
        if subprocess.run(
            [*_GRIT, *command, *model], cwd=folder, input=b"a question?\n", capture_output=True
        ).returncode:
            continue  # a model that only embeds
        for _ in range(runs):
            printed = []
            for kind, flags in (("cold", ["--no-server"]), ("warm", [])):
                started = time.perf_counter()
                done = subprocess.run(
                    [*_GRIT, *command, *model, *flags],
                    cwd=folder,
                    input=b"a question?\n",
                    capture_output=True,
                    check=True,
                )
                seconds[kind].append(time.perf_counter() - started)
                printed.append(done.stdout)
            assert printed[0] == printed[1], (command, printed)
        cold, warm = (statistics.median(seconds[kind]) for kind in ("cold", "warm"))
        results[name] = {"cold": round(cold, 2), "warm": round(warm, 2), "ratio": round(cold / warm, 1)}
    return results


if __name__ == "__main__":
    main()
