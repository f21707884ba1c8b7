"""What a store's vectors depend on. Two models that agree in all of it can share a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grit_mlx.errors import StoreError
from grit_mlx.model.hub import VOCABULARY_FILES

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM

__all__ = ["check_fingerprint", "digest", "fingerprint"]

# Of each file of weights the header, the size and this many blocks spread over it are hashed: hashing all of a 14 GB
# model would take longer than many an answer.
_BLOCKS: Final = 64
_BLOCK_BYTES: Final = 4096
_HEADER_BYTES: Final = 1 << 20

# What is compared: as messages call it, and whether they show both values.
_COMPARED: Final = {
    "weights": ("weights", False),
    "quantisation": ("quantisation", True),
    "adapter": ("adapter", False),
    "tokenizer": ("tokenizer", False),
    "pooling": ("pooling", True),
    "attention": ("attention", True),
    "normalized": ("normalisation", True),
    "query_instruction": ("query instruction", True),
    "document_instruction": ("document instruction", True),
}


def fingerprint(model: GritLM) -> dict[str, Any]:
    """What vectors and cached keys of ``model`` depend on, as plain values."""
    quantisation = model.config.get("quantization") or model.config.get("quantization_config") or {}
    bits = {key: value for key, value in quantisation.items() if not isinstance(value, Mapping | bool)}
    return {
        "model": model.folder.name,  # for people; not compared
        "weights": _weights(model.folder),
        "quantisation": json.dumps(bits, sort_keys=True) if bits else "none",
        "adapter": _weights(model.adapter) if model.adapter else "none",
        "tokenizer": _hash(path.read_bytes() for name in VOCABULARY_FILES if (path := model.folder / name).is_file()),
        "pooling": model.settings.pooling,
        "attention": model.settings.attn,
        "normalized": model.settings.normalized,
        "query_instruction": model.settings.query_instruction,
        "document_instruction": model.settings.document_instruction,
    }


def check_fingerprint(stored: Mapping[str, Any], own: Mapping[str, Any], *, uri: str) -> None:
    """Refuse a store that was made with another model.

    Raises:
        StoreError: names what differs.
    """
    differing = [
        f"the {called}" + (f" ({stored.get(name)!r} there, {own.get(name)!r} here)" if shown else "")
        for name, (called, shown) in _COMPARED.items()
        if stored.get(name) != own.get(name)
    ]
    if differing:
        raise StoreError(
            f"The store {uri} was made with another model ({stored.get('model')}; now {own.get('model')}). "
            f"What differs: {', '.join(differing)}. Use that model, or index into another store."
        )


def digest(values: Mapping[str, Any]) -> str:
    """A short name for a fingerprint; the model's folder may be called anything."""
    compared = {name: values.get(name) for name in _COMPARED}
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]


def _weights(folder: Path) -> str:
    return _hash(part for path in sorted(folder.glob("*.safetensors")) for part in _sampled(path))


def _sampled(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    yield f"{path.name} {size}".encode()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        yield file.read(min(length, _HEADER_BYTES))
        start = min(8 + length, size)
        for block in range(_BLOCKS):
            file.seek(start + (size - start) * block // _BLOCKS)
            yield file.read(_BLOCK_BYTES)


def _hash(parts: Iterable[bytes]) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(part)
    return state.hexdigest()[:16]
