"""What a store's vectors depend on. Two models that agree in all of it can share a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grit_mlx.errors import ModelError, Option, StoreError
from grit_mlx.model.catalogue import named
from grit_mlx.model.hub import VOCABULARY_FILES, identify, local_models, name_of
from grit_mlx.model.options import ModelChoice

if TYPE_CHECKING:
    from grit_mlx.gritlm import GritLM

__all__ = ["check_fingerprint", "digest", "find_model", "fingerprint"]

# Of each file of weights the header, the size and this many blocks spread over it are hashed: hashing all of a 14 GB
# model would take longer than many an answer.
_BLOCKS: Final = 64
_BLOCK_BYTES: Final = 4096
_HEADER_BYTES: Final = 1 << 20

# What is compared: as messages call it, and whether they show both values.
_COMPARED: Final = {
    "weights": ("weights", False),
    "quantisation": ("quantisation", False),
    "adapter": ("adapter", False),
    "tokenizer": ("tokenizer", False),
    "pooling": ("pooling", True),
    "attention": ("attention", True),
    "normalized": ("normalisation", True),
    "query_instruction": ("query instruction", False),
    "document_instruction": ("document instruction", False),
}


def fingerprint(model: GritLM) -> dict[str, Any]:
    """What vectors and cached keys of ``model`` depend on, as plain values."""
    quantisation = model.config.get("quantization") or model.config.get("quantization_config") or {}
    bits = {key: value for key, value in quantisation.items() if not isinstance(value, Mapping | bool)}
    return {
        # To find them again; not compared.
        "model": name_of(model.folder),
        "folder": str(model.folder.resolve()),
        "adapter_folder": str(model.adapter.resolve()) if model.adapter else "",
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
            f"What differs: {', '.join(differing)}. ",
            *_way_out(stored),
        )


def find_model(stored: Mapping[str, Any]) -> ModelChoice | None:
    """The model that a store was made with, if it is on this machine; known by its weights, whatever it is called."""
    adapter = None
    if stored.get("adapter", "none") != "none":
        adapter = Path(stored.get("adapter_folder") or "")
        if not stored.get("adapter_folder") or not adapter.is_dir() or _weights(adapter) != stored["adapter"]:
            return None
    # Where it was, then everything that is called the same, then all others.
    folders = {Path(stored["folder"])} if stored.get("folder") else set()
    others = sorted(local_models(), key=lambda one: stored.get("model") not in (one.name, one.folder.name))
    for folder in dict.fromkeys([*folders, *(one.folder for one in others)]):
        if (folder / "config.json").is_file() and _weights(folder) == stored.get("weights"):
            return ModelChoice(folder, adapter=adapter)
    return None


def _way_out(stored: Mapping[str, Any]) -> list[str | Option]:
    """What to do about a store of another model, as the end of a message."""
    name, found = str(stored.get("model")), find_model(stored)
    other = ", or index into another store: grit rag index PATH --store FOLDER"
    if found is not None:
        with suppress(ModelError):
            found = replace(found, model=name if identify(name) == found.model else found.model)
        tuned: list[str | Option] = [" ", Option("adapter", str(found.adapter))] if found.adapter else []
        return ["Use that model: ", Option("model", str(found.model)), *tuned, other]
    known = named(name)
    command = f"grit models pull {known[0].name} --bits {known[1]}" if known else f"grit models pull {name}"
    if known or "/" in name:
        return [f"Get that model: {command}{other}"]
    return ["That model is not on this machine: name its folder with ", Option("model"), other]


def digest(values: Mapping[str, Any]) -> str:
    """A short name for a fingerprint; the model's folder may be called anything."""
    compared = {name: values.get(name) for name in _COMPARED}
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()[:16]


def _weights(folder: Path) -> str:
    states = [(path, path.stat()) for path in sorted(folder.glob("*.safetensors"))]
    return _hashed(tuple((path, state.st_size, state.st_mtime_ns) for path, state in states))


@lru_cache(maxsize=32)
def _hashed(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files in a certain state: a store's model is looked for before it is loaded, and checked after it."""
    return _hash(part for path, _, _ in files for part in _sampled(path))


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
