"""Models of GritLM's own sizes on this machine: conversion with its proof, embedding, generating, a LoRA step.

    python benchmarks/seed_sizes.py [--kinds mistral mixtral] [--layers N] [--folder DIR]

A checkpoint with random bfloat16 weights of Mistral-7B's shape (14.5 GB), and one of Mixtral-8x7B's as far as the disk
goes, are made and removed again. Each command of ``grit`` runs in a process of its own, whose peak resident memory is
noted. On a machine without a GPU and with less memory than the weights take in float32, layers widen their weights
while they compute (``grit_mlx/model/widening.py``). Ctrl-C and SIGTERM are sent in the middle of a batch.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints import count, make_checkpoint
from common import machine, save

GRIT = Path(sys.executable).with_name("grit")

_WIDTHS = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "mistral": _WIDTHS,
    "mixtral": {**_WIDTHS, "num_local_experts": 8, "num_experts_per_tok": 2},
}
LAYERS = 32
# Part of the free disk space that a checkpoint and its conversion may take.
DISK_FRACTION = 0.8
# What 4 bits with their scales add to a checkpoint in bfloat16.
CONVERTED = 0.32

TEXTS = "Wind leans on the sails of a ship while bread rises.\nThe keel keeps it upright.\n"
QUESTION = "What keeps a ship upright?"
NEW_TOKENS = 4
SECONDS_INTO_BATCH = 2
ROWS: dict[str, list[dict[str, Any]]] = {
    "embedding": [
        {"query": f"what is {name}", "pos": [f"{name} is a thing"], "neg": ["bread rises"]} for name in ("wind", "rope")
    ],
    "generative": [{"prompt": "What is a keel?", "completion": "The lowest part of a ship."}],
}


def run(arguments: list[str], *, stop: int | None = None) -> dict[str, Any]:
    """A command's seconds and peak memory; with ``stop`` those from a signal in the middle of a batch to its end.

    It runs in a terminal of its own, as it does for a person: its bar says when a batch has begun.
    """
    terminal, child = pty.openpty()
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(GRIT), *arguments],
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell began this with &
    )
    os.close(child)
    said, peak, sent = b"", 0, None
    while True:
        said += written(terminal)
        peak = max(peak, resident(process.pid))
        if stop is not None and sent is None and b"Embedding" in said:
            time.sleep(SECONDS_INTO_BATCH)
            process.send_signal(stop)
            began = sent = time.perf_counter()
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
    taken = time.perf_counter() - began
    said += written(terminal)
    os.close(terminal)
    process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it again
    expected = 0 if stop is None else {signal.SIGINT: 130, signal.SIGTERM: 143}[signal.Signals(stop)]
    if process.returncode != expected:
        sys.exit(f"grit {' '.join(arguments)} ended with {process.returncode}:\n{said.decode(errors='replace')[-500:]}")
    row = {"seconds": round(taken, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1)}
    row["peak_mb"] = round((peak or usage.ru_maxrss) / 1e6)  # bytes on macOS
    print(f"grit {' '.join(arguments[:1])} {row}", file=sys.stderr, flush=True)
    return row


def written(terminal: int) -> bytes:
    """What was written to a terminal, within a twentieth of a second."""
    if not select.select([terminal], [], [], 0.05)[0]:
        return b""
    with contextlib.suppress(OSError):  # on Linux, once nobody has it open any more
        return os.read(terminal, 1 << 16)
    time.sleep(0.05)
    return b""


def resident(process: int) -> int:
    """The most bytes that a process has held so far; 0 where the system does not say.

    Not the figure of ``wait4`` on Linux, which includes what this process held when it began the other.
    """
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    return 0


def measured(kind: str, layers: int, folder: Path) -> dict[str, Any]:
    """All that is measured on one checkpoint; what a stopped run measured in the same folder is taken over."""
    source, model, noted = folder / "source", folder / "model", folder / "row.json"
    row: dict[str, Any] = json.loads(noted.read_text()) if noted.exists() else {}
    if not row:
        shutil.rmtree(source, ignore_errors=True)
        nbytes = make_checkpoint(source, kind, SHAPES[kind], layers=layers)
        parameters = count(kind, SHAPES[kind], layers)
        row = {"kind": kind, "layers": layers, "parameters": parameters, "gb": round(nbytes / 1e9, 2)}
    texts, data = folder / "texts.txt", folder / "data"
    texts.write_text(TEXTS)
    data.mkdir(exist_ok=True)
    for name, rows in ROWS.items():
        (data / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    chosen = ["--model", str(model)]
    embed = ["embed", str(texts), *chosen, "--output", str(folder / "vectors.npy"), "--no-server"]
    options = {"iters": 1, "batch-size": 2, "generative-batch-size": 1, "val-rows": 0, "warmup": 0}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    commands: dict[str, tuple[list[str], int | None]] = {
        "convert": (["convert", str(source), "-o", str(model), "--q-bits", "4"], None),
        "embed": (embed, None),
        "ctrl_c": (embed, signal.SIGINT),
        "sigterm": (embed, signal.SIGTERM),
        "generate": (["generate", QUESTION, *chosen, "--max-tokens", str(NEW_TOKENS), "--no-server"], None),
        "train": (["train", *chosen, "--data", str(data), "--adapter-path", str(folder / "adapter"), *flags], None),
    }
    for name, (arguments, stop) in commands.items():
        if name in row:
            continue
        row[name] = run(arguments, stop=stop)
        if name == "convert":
            shutil.rmtree(source)
            row["converted_gb"] = round(sum(path.stat().st_size for path in model.glob("*.safetensors")) / 1e9, 2)
        noted.write_text(json.dumps(row))
    return row


def affordable(kind: str, folder: Path) -> int:
    """How many layers of a checkpoint the disk has room for."""
    room = DISK_FRACTION * shutil.disk_usage(folder).free / (1 + CONVERTED) / 2
    fixed, layer = count(kind, SHAPES[kind], 0), count(kind, SHAPES[kind], 1) - count(kind, SHAPES[kind], 0)
    return max(1, min(LAYERS, int((room - fixed) / layer)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--layers", type=int, help="layers (default: 32, or as many as the disk has room for)")
    parser.add_argument("--folder", type=Path, help="where a stopped run is resumed (default: a temporary folder)")
    options = parser.parse_args()
    rows: list[Mapping[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for kind in options.kinds:
            folder = (options.folder or Path(temporary)) / kind
            folder.mkdir(parents=True, exist_ok=True)
            rows.append(measured(kind, options.layers or affordable(kind, folder), folder))
            shutil.rmtree(folder)
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    save(f"seed_sizes-{machine()['device']}", {"texts": 2, "new_tokens": NEW_TOKENS, "rows": rows})


if __name__ == "__main__":
    main()
