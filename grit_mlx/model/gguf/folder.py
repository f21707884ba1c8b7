"""A GGUF file as a checkpoint: config, tokenizer and tensors, and a model folder made of them, once.

The folder lies among the models of this user. It is made anew when the file changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from grit_mlx.errors import ArchitectureError, CheckpointError, ModelNotFoundError, NonFiniteError, first_line
from grit_mlx.files.folder import atomic_folder, require_space
from grit_mlx.model.gguf.architectures import Architecture, Facts, architecture_of, config_of
from grit_mlx.model.gguf.header import Entry, Header, is_gguf, parts_of, read_header
from grit_mlx.model.gguf.tensors import AFFINE, GROUP_SIZE, GgufTensor, readable, tensors_of
from grit_mlx.model.gguf.vocabulary import eos_tokens, tokenizer_config, tokenizer_of
from grit_mlx.progress import reporting

__all__ = ["NOTE", "GgufModel", "gguf_in", "read_model", "unpacked", "write_small_files"]

logger = logging.getLogger("grit_mlx")

# Beside the files of a folder that was made of a GGUF file: which.
NOTE = "gguf.json"
# What this module makes of a file; a folder of another number is made anew.
_FORMAT = 1

# How many times the size of a file someone should know about.
_MUCH_LARGER = 1.8
# Numbers that are read, unpacked and written at a time.
_BLOCK = 4 << 20
_SPARE_BYTES = 64 << 20

# Vectors that are part of the config; those of other names belong to no weight.
_ROTATION = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")

# Of the model card, under the names that the hub gives them.
_CARD = {"general.license": "license", "general.languages": "language", "general.tags": "tags"}

_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file in the terms of Hugging Face's and mlx-lm's files.

    Attributes:
        header: of the file.
        config: the contents of ``config.json``.
        tensors: under the names of such a checkpoint.
    """

    header: Header
    config: dict[str, Any]
    tensors: dict[str, GgufTensor]

    @property
    def place(self) -> Path:
        """The file, the first one if it is split."""
        return self.header.files[0]


def gguf_in(place: Path) -> Path | None:
    """The GGUF file that a path stands for: itself, or the only one in a folder without other weights.

    Raises:
        ModelNotFoundError: the folder holds several.
    """
    if place.is_file():
        return place if place.suffix.lower() == ".gguf" or is_gguf(place) else None
    if any(place.glob("model*.safetensors")):
        return None
    files = sorted(path for path in place.glob("*.gguf") if not path.name.lower().startswith("mmproj"))
    first = {parts_of(path)[0] for path in files}
    if len(first) > 1:
        names = ", ".join(sorted(path.name for path in first))
        raise ModelNotFoundError(f"{place} holds {len(first)} GGUF models: {names}. Name one of the files.")
    return next(iter(first), None)


def read_model(path: Path) -> GgufModel:
    """Read what a file says of itself; no weight is read.

    Raises:
        ModelError: of a kind that says what is wrong, or not known here.
    """
    header = read_header(path)
    place = str(header.files[0])
    name = header.get("general.architecture")
    if not isinstance(name, str):
        raise CheckpointError(f"{place} does not say which architecture it is (general.architecture).")
    vectors = {
        key: tensors_of(key, [header.entries[key]])[key].read(0, 1)[0] for key in _ROTATION if key in header.entries
    }
    shapes = {key: entry.shape for key, entry in header.entries.items()}
    facts = Facts(name, header.metadata, shapes, vectors, place)
    try:
        architecture = architecture_of(facts)
        if "token_embd.weight" not in header.entries:
            raise CheckpointError(f"{place} lacks token_embd.weight, so it is not a complete model. Download it again.")
        config = config_of(architecture, facts)
        tensors = dict(_tensors(header, architecture, config))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # numbers that cannot be, texts for numbers
        raise CheckpointError(
            f"{place} is damaged: its metadata is not valid ({first_line(error)}) Download it again."
        ) from error
    config |= _stored_as(header, tensors) | {"eos_token_id": eos_tokens(header.metadata, place)}
    for key in ("bos", "padding"):
        if (number := header.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config["pad_token_id" if key == "padding" else "bos_token_id"] = number
    return GgufModel(header, config, tensors)


def _tensors(header: Header, architecture: Architecture, config: dict[str, Any]) -> Iterator[tuple[str, GgufTensor]]:
    place = header.files[0]
    found: dict[str, dict[int, Entry]] = {}
    for stored, entry in header.entries.items():
        if stored in _ROTATION:
            continue
        named = architecture.name_of(stored)
        if named is None:
            raise ArchitectureError(
                f"{place} holds {stored}, which the architecture {config['model_type']} does not have here. Use the "
                "model's Hugging Face checkpoint, or an MLX one."
            )
        if not readable(entry):
            raise CheckpointError(
                f"{place} holds {stored} as {entry.kind.name}, which cannot be read here. Use a file of another "
                "quantisation, such as Q8_0 or Q4_K_M."
            )
        found.setdefault(named[0], {})[named[1]] = entry
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, pieces in found.items():
        first = next(iter(pieces.values()))
        if len({entry.shape for entry in pieces.values()}) > 1 or sorted(pieces) != list(range(len(pieces))):
            raise CheckpointError(f"{place} is damaged: experts beside {first.name} are missing. Download it again.")
        module, leaf = name.rsplit(".", 1)
        own = heads.get(module.rpartition(".")[2], 0) if architecture.permuted else 0
        if own and first.shape[0] % (2 * own):
            raise CheckpointError(f"{place} is damaged: {first.name} has {first.shape[0]} rows for {own} heads.")
        added = architecture.norms_added if module.endswith("norm") and leaf == "weight" else 0.0
        entries = [entry for _, entry in sorted(pieces.items())]
        stacked = ".switch_mlp." in name and len(first.shape) == 2
        yield from tensors_of(name, entries, stacked=stacked, heads=own, added=added).items()


def _stored_as(header: Header, tensors: dict[str, GgufTensor]) -> dict[str, Any]:
    """The entries of the config that say how the weights are stored."""
    kinds = {entry.kind.name for entry in header.entries.values() if len(entry.shape) > 1}
    plain = {"F32": "float32", "BF16": "bfloat16"}
    dtype = plain[kinds.pop()] if len(kinds) == 1 and kinds <= plain.keys() else "float16"
    bits = {
        name.rpartition(".")[0]: AFFINE[tensor.entries[0].kind].bits
        for name, tensor in tensors.items()
        if tensor.leaf == "weight"
    }
    if not bits:
        return {"torch_dtype": dtype}
    most = max(sorted(set(bits.values())), key=list(bits.values()).count)
    table: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": most, "mode": "affine"}
    others = {name: {**table, "bits": one} for name, one in bits.items() if one != most}
    quantization = table | others
    return {"torch_dtype": dtype, "quantization": quantization, "quantization_config": quantization}


def write_small_files(model: GgufModel, folder: Path) -> None:
    """Config, tokenizer and generation settings, in a folder.

    Raises:
        TokenizerError: the tokenizer is not known here.
    """
    metadata, place = model.header.metadata, str(model.place)
    tokenizer_of(metadata, place).save(str(folder / "tokenizer.json"))
    generation = {
        key: model.config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in model.config
    }
    sampling = {name: metadata[key] for key, name in _SAMPLING.items() if key in metadata}
    files = {
        "tokenizer_config.json": tokenizer_config(metadata, place),
        "generation_config.json": generation | sampling | ({"do_sample": True} if sampling else {}),
        "config.json": model.config,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    card = {name: metadata[key] for key, name in _CARD.items() if key in metadata}
    if card:
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card, allow_unicode=True)}---\n", encoding="utf-8")


def unpacked(path: Path, models: Path) -> Path:
    """The model folder of a GGUF file, made first if need be.

    Args:
        path: the file, or one part of it.
        models: the folder of such folders.

    Raises:
        ModelError: as ``read_model``.
        OutputError: the folder cannot be written.
    """
    files = parts_of(path)
    stats = [[one.name, one.stat().st_size, one.stat().st_mtime_ns] for one in files]
    # Not where a link leads: the hub's cache names those by hashes.
    place = Path(os.path.abspath(files[0]))  # noqa: PTH100
    folder = _folder_of(place, models)
    note = {"format": _FORMAT, "file": str(place), "files": stats}
    if _note(folder) == note:
        return folder
    model = read_model(path)
    size = sum(_nbytes(tensor, model.config["torch_dtype"]) for tensor in model.tensors.values())
    require_space(folder, size + _SPARE_BYTES, "Make room, or set GRIT_HOME to a folder on another disk.")
    logger.info("Unpacking %s once, to %s.", model.place, folder)
    if size > _MUCH_LARGER * sum(one.stat().st_size for one in files):
        logger.warning(
            "%s takes %.1f GB unpacked: mlx has no form for its weights. 'grit convert %s -q' makes it smaller.",
            model.place.name,
            size / 1e9,
            model.place,
        )
    with atomic_folder(folder) as unfinished:
        write_small_files(model, unfinished)
        _write_weights(model, unfinished / "model.safetensors")
        (unfinished / NOTE).write_text(json.dumps(note), encoding="utf-8")
    return folder


def _folder_of(path: Path, models: Path) -> Path:
    """Named after the file; with a hash of its path if the name is another file's."""
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.stem.lower())
    name = re.sub(r"[^a-z0-9_.-]+", "-", stem).strip(".-") or "gguf"
    plain = models / name
    if not plain.exists() or _note(plain).get("file") == str(path):
        return plain
    return models / f"{name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _note(folder: Path) -> dict[str, Any]:
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


# Writing weights


_WIDTHS = {"U32": 4, "F32": 4, "F16": 2, "BF16": 2}
_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


def _written_as(tensor: GgufTensor, dtype: str) -> str:
    return tensor.dtype if tensor.leaf == "weight" else _NAMES[dtype]


def _nbytes(tensor: GgufTensor, dtype: str) -> int:
    return int(np.prod(tensor.shape)) * _WIDTHS[_written_as(tensor, dtype)]


def _write_weights(model: GgufModel, path: Path) -> None:
    """One safetensors file, block of rows by block of rows."""
    dtype = model.config["torch_dtype"]
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, tensor in model.tensors.items():
        size = _nbytes(tensor, dtype)
        entries[name] = {
            "dtype": _written_as(tensor, dtype),
            "shape": list(tensor.shape),
            "data_offsets": [end, end + size],
        }
        end += size
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    done = 0
    with path.open("wb") as file, reporting(None, f"Unpacking {model.place.name}", end >> 20) as report:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, tensor in model.tensors.items():
            rows = int(np.prod(tensor.shape[:-1]))
            step = max(1, _BLOCK // tensor.shape[-1])
            for start in range(0, rows, step):
                values = tensor.read(start, min(start + step, rows))
                octets = _cast(values, tensor.dtype, _written_as(tensor, dtype), f"{name} of {model.place}")
                file.write(octets.tobytes())
                done += octets.nbytes
                if report is not None:
                    report(done >> 20, None)


def _cast(values: NDArray[Any], stored: str, written: str, what: str) -> NDArray[Any]:
    """Values in the type that they are written in, once they are known to be finite."""
    if stored == "U32":
        return values
    wide = (values.astype(np.uint32) << 16).view(np.float32) if stored == "BF16" else values
    if not np.isfinite(wide).all():
        raise NonFiniteError(f"{what} holds NaN or infinity: the file is damaged. Download it again.")
    if stored == written:
        return values
    if written == "BF16":
        bits = np.ascontiguousarray(wide, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float16 if written == "F16" else np.float32)
    if not np.isfinite(narrow).all():
        raise NonFiniteError(
            f"{what} has numbers too large for float16. Convert the file: grit convert FILE --dtype bfloat16"
        )
    return narrow
