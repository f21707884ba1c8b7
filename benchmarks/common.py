"""Shared by the benchmarks: the machine, random models, corpora, saving results."""

from __future__ import annotations

import gzip
import json
import os
import platform
import random
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grit_mlx  # noqa: F401 - before mlx, to load the fast BLAS

# isort: split
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import llama

from grit_mlx.model import device

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SHARED = HERE.parents[1] / "shared"
CORPORA = ("clapnq_dev", "fairytaleqa_val", "pubmedqa", "scitldr_test", "xquad_en")


def machine() -> dict[str, Any]:
    """The machine and the versions that the results depend on."""
    here = device.current_device()
    return {
        "device": here.kind,
        "chip": here.name,
        "cores": os.cpu_count(),
        "memory_gb": round(here.memory / 1e9, 1),
        "blas": here.blas,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "date": date.today().isoformat(),
    }


def save(name: str, results: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n", encoding="utf-8")
    print(f"-> {path.relative_to(HERE.parent)}", file=sys.stderr)


def shared_tokenizer() -> Path:
    """Folder with Mistral's tokenizer, next to the repository."""
    folder = SHARED / "golden" / "mistral" / "checkpoint"
    if not folder.is_dir():
        sys.exit("This benchmark needs ../shared (Mistral's tokenizer and the corpora), or --model and --texts.")
    return folder


@contextmanager
def random_model(*, hidden: int, layers: int, intermediate: int, heads: int = 8, kv_heads: int = 4) -> Iterator[Path]:
    """A folder with a random Mistral and Mistral's tokenizer."""
    config: dict[str, Any] = {
        "model_type": "mistral",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        for path in shared_tokenizer().glob("*token*"):
            shutil.copy(path, folder)
        mx.random.seed(0)
        model = llama.Model(llama.ModelArgs.from_dict(config))
        flat: Any = tree_flatten(model.parameters())
        mx.save_safetensors(str(folder / "model.safetensors"), dict(flat))
        (folder / "config.json").write_text(json.dumps(config))
        yield folder


def corpus(name: str, limit: int | None = None) -> list[str]:
    """Title and text of the documents of a development corpus, shuffled."""
    path = SHARED / "data" / "dev" / name / "corpus.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    texts = [f"{d.get('title', '')} {d['text']}".strip() for d in documents]
    random.Random(0).shuffle(texts)
    return texts[:limit]


def matmul_rate(size: int = 2048) -> float:
    """Floating-point operations per second of a square float32 product, best of five."""
    a, b = (mx.random.normal((size, size)) for _ in range(2))
    mx.eval(a @ b)
    return 2 * size**3 / min(seconds(lambda: mx.eval(a @ b)) for _ in range(5))


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux its value includes the memory of the parent at the fork.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median(values: list[float]) -> float:
    return statistics.median(values)
