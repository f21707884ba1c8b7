"""``grit models``: list, describe, download, choose and remove models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grit_mlx.cli import console, convert, options
from grit_mlx.cli.options import Use
from grit_mlx.cli.wording import size_of
from grit_mlx.convert.options import ConversionOptions
from grit_mlx.errors import ArgumentError, ModelNotFoundError
from grit_mlx.model import hub
from grit_mlx.model.catalogue import (
    CATALOGUE,
    LONG_WORK,
    CatalogueEntry,
    Family,
    catalogue,
    named,
    recommended,
    usable_memory,
)
from grit_mlx.model.checkpoint import Tensor, decoder_config, read_config, read_headers
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.settings import FILE_NAME, read_settings

if TYPE_CHECKING:
    from grit_mlx.model.device import Device

__all__ = [
    "EXAMPLES",
    "INFO_EXAMPLES",
    "LIST_EXAMPLES",
    "PULL_EXAMPLES",
    "REMOVE_EXAMPLES",
    "USE_EXAMPLES",
    "info",
    "list_models",
    "pull",
    "remove",
    "use",
]

EXAMPLES = """
Examples:
  grit models list
  grit models pull gritlm-7b
  grit models use gritlm-7b
"""
LIST_EXAMPLES = """
Examples:
  grit models list
  grit models list --available
  grit models list --json
"""
INFO_EXAMPLES = """
Examples:
  grit models info gritlm-7b
  grit models info ./my-model --json
"""
PULL_EXAMPLES = """
Examples:
  grit models pull
  grit models pull gritlm-7b
  grit models pull gritlm-7b --bits 4
  grit models pull GritLM/GritLM-7B --revision main
"""
REMOVE_EXAMPLES = """
Examples:
  grit models remove gritlm-7b-4bit
  grit models remove GritLM/GritLM-7B --yes
"""
USE_EXAMPLES = """
Examples:
  grit models use gritlm-7b
  grit models use ./my-model
  grit models use --unset
"""

# Packed integers: U32 holds 32 / bits of them. The other dtypes are one number each.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "U32": "uint32", "U8": "uint8"}


@options.command
def list_models(
    *,
    available: Annotated[
        bool,
        typer.Option(
            "--available",
            rich_help_panel=options.OUTPUT,
            help="List the models with a short name: their size, the memory that they need, the Mac that has it.",
        ),
    ] = False,
    json_output: options.JsonFlag = False,
) -> None:
    """List the models on this machine, with the default marked."""
    if available:
        _show_available(json_output=json_output)
        return
    default = hub.default_model()
    models = _known_models(default)
    if json_output:
        console.write(console.dumps(models, indent=2))
        return
    if not models:
        console.note("there are no models on this machine yet. Fetch one: grit models pull gritlm-7b")
        return
    name_width = max(len(model["name"]) for model in models)
    for model in models:
        mark = "*" if model["default"] else " "
        console.write(
            console.visible(f"{mark} {model['name']:<{name_width}}  {size_of(model['bytes']):>8}  {model['folder']}")
        )
    if default is not None and not any(model["default"] for model in models):
        console.note(f"the default is {default}, which is not here yet")
    elif [model["folder"] for model in models] == [str(hub.embedded_model())]:
        console.note("larger ones, and which of them this machine runs: grit models list --available")


@options.command
def info(
    *,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A model folder, a hub id or a short name. Default: the default model."),
    ] = None,
    json_output: options.JsonFlag = False,
) -> None:
    """Show a model's architecture, size, precision and settings.

    Only the headers of the weights are read.
    """
    facts = describe(_local_folder(name))
    if json_output:
        console.write(console.dumps(facts, indent=2))
        return
    console.write_rows(_rows(facts))


@options.command
def pull(
    *,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A hub id such as GritLM/GritLM-7B, or a short name. Without one the command for the model that suits "
            "this machine is printed.",
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=options.MODEL,
            help="Quantise to N bits: downloaded ready-made if the hub has it, else converted during the download.",
        ),
    ] = None,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", rich_help_panel=options.MODEL, help="Without NAME: download the recommended one."),
    ] = False,
    choice: Annotated[ModelChoice, Use(only=("revision", "trust_remote_code"))],
) -> None:
    """Download a model and print its folder.

    The same command resumes an interrupted download.
    """
    if name is None:
        entry = _recommended()
        if not yes:
            console.write(entry.command)
            return
        name, bits = entry.family.name, None if entry.bits == 16 else entry.bits
    elif bits is None and (known := named(name)):
        name, bits = known[0].name, known[1]
    if bits is not None:
        console.write(str(_pulled(replace(choice, model=name), bits)))
        return
    place = hub.identify(name)
    if isinstance(place, Path):
        raise ArgumentError(f"{place} is a folder on this machine already.")
    console.write(str(hub.download(place, revision=choice.revision, code=choice.trust_remote_code)))


def _pulled(choice: ModelChoice, bits: int) -> Path:
    """A model at this many bits: downloaded ready-made, or converted while its source is downloaded."""
    place = hub.identify(str(choice.model))
    if isinstance(place, Path):
        raise ArgumentError(f"{place} is a folder on this machine already. Convert it: grit convert {choice.model}")
    target = hub.models_folder() / f"{place.rpartition('/')[2]}-{bits}bit".lower()
    if (target / "config.json").exists():
        console.note(f"{target.name} is here already")
        return target
    ready = hub.ready_made(place, bits)
    if ready is not None:
        console.note(f"the hub has it as {ready}")
        return hub.download(ready)
    console.note(f"the hub has no {bits}-bit {place}; it is converted while it is downloaded")
    report = convert.converting(choice, ConversionOptions(bits=bits, output=target))
    console.note(f"to make it the default: grit models use {target.name}")
    return report.folder


@options.command
def use(
    *,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A model folder, a GGUF file, a hub id or a short name.")
    ] = None,
    unset: Annotated[bool, typer.Option("--unset", help="Unset the default.")] = False,
) -> None:
    """Choose the model that commands use by default."""
    if unset == (name is not None):
        raise typer.BadParameter("Give either a name or --unset.", param_hint="NAME")
    if name is None:
        hub.set_default_model(None)
        console.note(f"the default is now {hub.default_model() or 'unset'}")
        return
    place = hub.identify(name)
    chosen = str(place)
    if isinstance(place, Path):
        if not hub.is_adapter(place):
            read_config(hub.resolve(ModelChoice(place)))  # refuses what is not a model
        chosen = place.name if place == hub.embedded_model() else str(place.resolve())
    hub.set_default_model(chosen)
    console.note(f"the default is now {chosen}")
    if (now := hub.default_model()) != chosen:
        console.warn(f"GRIT_MODEL is set to {now} and overrides it. Unset it to use the choice.")
    elif isinstance(place, str) and place.lower() not in {model.name.lower() for model in hub.local_models()}:
        console.note(f"it is not on this machine yet; the first use fetches it, or now: grit models pull {name}")


@options.command
def remove(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model that grit models list shows.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a model that was pulled or converted.

    Folders of your own and the built-in model stay.
    """
    folder = _local_folder(name)
    model = next((one for one in hub.local_models() if one.folder == folder), None)
    if model is None:
        raise ModelNotFoundError(f"{folder} is a folder of your own: delete it with rm -r.")
    was_default = hub.default_model() in (model.name, str(model.folder))
    if not yes and model.folder != hub.embedded_model():
        if not console.stdin_is_terminal():
            raise typer.BadParameter("Nobody can be asked here: add --yes to delete it.", param_hint="--yes")
        if not typer.confirm(f"Delete {model.name} ({size_of(model.nbytes)} in {model.folder})?", err=True):
            raise typer.Exit(1)
    hub.remove(model)
    console.note(f"{model.name} is deleted; {size_of(model.nbytes)} are free again")
    if was_default:
        console.note(f"it was the default, which is now {hub.default_model() or 'unset'}")


# What there is


def _recommended() -> CatalogueEntry:
    """The model for this machine, with a note that says why.

    Raises:
        ArgumentError: no model fits.
    """
    memory = _device().memory
    entry = recommended(memory)
    if entry is None:
        raise ArgumentError(f"This machine has {size_of(memory)}, which is too little for a model that writes.")
    jobs = " and ".join(_jobs(entry.family))
    console.note(
        f"this machine has {size_of(memory)}, of which a model may use {size_of(usable_memory(memory))}. {entry.name} "
        f"{jobs}; download {size_of(entry.download_bytes)}, on disk {size_of(entry.size_bytes)}, in memory "
        f"{size_of(entry.long_bytes)} with {LONG_WORK:,} tokens. All: grit models list --available"
    )
    return entry


def _device() -> Device:
    from grit_mlx.model.device import current_device

    return current_device()


def _verdict(one: CatalogueEntry, here: Device) -> str:
    """What this machine can do with a model; see ``CatalogueEntry.verdict``."""
    found = one.verdict(here.memory)
    widened = 4 * one.parameters  # the one dtype that a CPU is fast in
    return "slow" if here.kind == "cpu" and found == "fits" and widened > here.memory else found


def _jobs(family: Family) -> list[str]:
    return [job for job, can in (("embeds", family.embeds), ("writes", family.writes)) if can]


def _show_available(*, json_output: bool) -> None:
    here = _device()
    best = recommended(here.memory)
    if json_output:
        console.write(console.dumps([_entry_facts(one, here, best) for one in catalogue()], indent=2))
        return
    embedded = hub.embedded_model()
    if embedded is not None:
        facts = describe(embedded)
        console.write(f"{embedded.name}: {_count(facts['parameters'])}, embeds English, built in")
    for family in CATALOGUE:
        entries = [one for one in catalogue() if one.family is family]
        first = entries[0]
        jobs, download = " and ".join(_jobs(family)), size_of(first.download_bytes)
        console.write(f"\n{family.name}: {_count(first.parameters)}, {jobs}, download {download}")
        console.write("  bits  on disk  512 tokens  8k tokens  Mac with  here")
        for one in entries:
            sizes = f"{size_of(one.size_bytes):>7}  {size_of(one.short_bytes):>10}  {size_of(one.long_bytes):>9}"
            mark, mac = "*" if one == best else " ", f"{one.mac} GB" if one.mac else "none"
            console.write(f"{mark} {one.bits:>4}  {sizes}  {mac:>8}  {_verdict(one, here)}")
    console.write("\n512 and 8k tokens: memory for a text or prompt of that\nlength, weights included.")
    if best is not None:
        console.write(f"* for this machine, with {size_of(here.memory)}:\n  {best.command}")


def _count(number: int) -> str:
    """``7.2B``, ``362M``."""
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.0f}M"


def _entry_facts(one: CatalogueEntry, here: Device, best: CatalogueEntry | None) -> dict[str, Any]:
    return {
        "name": one.name,
        "repository": one.family.repository,
        "parameters": one.parameters,
        "bits": one.bits,
        "embeds": one.family.embeds,
        "writes": one.family.writes,
        "download_bytes": one.download_bytes,
        "size_bytes": one.size_bytes,
        "memory_bytes_512_tokens": one.short_bytes,
        "memory_bytes_8192_tokens": one.long_bytes,
        "mac_gigabytes": one.mac,
        "here": _verdict(one, here),
        "recommended": one == best,
        "command": one.command,
    }


# What is here


def _known_models(default: str | None) -> list[dict[str, Any]]:
    """The models of this machine, and the default if that is a folder elsewhere."""
    place = None
    if default is not None:
        try:
            place = hub.identify(default)
        except ModelNotFoundError as error:
            console.warn(f"The default cannot be used: {error}")
    models = [
        {
            "name": model.name,
            "folder": str(model.folder),
            "bytes": model.nbytes,
            "default": place in (model.folder, model.name),
        }
        for model in hub.local_models()
    ]
    if isinstance(place, Path) and not any(model["default"] for model in models):
        files = [place] if place.is_file() else place.rglob("*")
        size = sum(file.stat().st_size for file in files if file.is_file())
        models.append({"name": place.name, "folder": str(place), "bytes": size, "default": True})
    return models


def _local_folder(name: str | None) -> Path:
    """The folder of a model, which has to be on this machine: reading about one must not download it."""
    chosen = hub.default_model() if name is None else name
    if chosen is None:
        return hub.resolve(ModelChoice())  # says what to do
    place = hub.identify(chosen)
    if isinstance(place, Path):
        return hub.resolve(ModelChoice(place))
    for model in hub.local_models():
        if model.name.lower() == place.lower():
            return model.folder
    raise ModelNotFoundError(f"{place} is not on this machine. Fetch it: grit models pull {chosen}")


# What it is


def describe(folder: Path) -> dict[str, Any]:
    """What a model folder holds, from its configuration and the headers of its weights.

    Raises:
        ModelError: the folder is not a model, or is damaged.
    """
    config = read_config(folder)
    tensors = read_headers(folder)
    text = decoder_config(config)
    quantization = config.get("quantization") or config.get("quantization_config") or {}
    settings = read_settings(folder)
    return {
        "folder": str(folder),
        "architecture": config["model_type"],
        "parameters": _parameters(tensors, quantization),
        "bytes": sum(tensor.nbytes for tensor in tensors.values()),
        "files": len({tensor.file for tensor in tensors.values()}),
        "dtypes": _dtypes(tensors),
        "bits": _bits(quantization),
        "quantization": {key: quantization[key] for key in ("bits", "group_size", "mode") if key in quantization}
        or None,
        "layers": text.get("num_hidden_layers"),
        "hidden_size": text.get("hidden_size"),
        "vocabulary_size": text.get("vocab_size"),
        "context_tokens": text.get("max_position_embeddings"),
        "experts": text.get("num_local_experts") or text.get("num_experts"),
        "language_model_head": any(name.endswith("lm_head.weight") for name in tensors)
        or bool(text.get("tie_word_embeddings")),
        "settings_file": (folder / FILE_NAME).exists(),
        "settings": {
            name: getattr(settings, name)
            for name in (
                "pooling",
                "attn",
                "normalized",
                "max_length",
                "query_instruction",
                "document_instruction",
                "similarity_instruction",
                "generates",
            )
        },
    }


def _parameters(tensors: dict[str, Tensor], quantization: Mapping[str, Any]) -> int:
    """Numbers of the model; of quantised weights those before quantising, without scales and biases."""
    total = 0
    for name, tensor in tensors.items():
        size = 1
        for dimension in tensor.shape:
            size *= dimension
        stem = name.rpartition(".")[0]
        quantised = f"{stem}.scales" in tensors
        if quantised and name.endswith((".scales", ".biases")):
            continue
        own = quantization.get(stem)  # of a module that differs from the others
        bits = (own if isinstance(own, Mapping) else quantization).get("bits")
        total += size * 32 // bits if quantised and tensor.dtype == "U32" and bits else size
    return total


def _dtypes(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Bytes by dtype, most first."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[_DTYPES.get(tensor.dtype, tensor.dtype.lower())] += tensor.nbytes
    return dict(sizes.most_common())


def _rows(facts: dict[str, Any]) -> dict[str, str]:
    """The facts as a person reads them; what is unknown is left out."""
    quantization = facts["quantization"]
    precision = ", ".join(facts["dtypes"])
    if quantization:
        group = f", groups of {quantization['group_size']}" if "group_size" in quantization else ""
        precision = f"{' and '.join(map(str, facts['bits'])) or '?'} bits{group} ({precision})"
    settings = facts["settings"]
    rows = {
        "folder": facts["folder"],
        "architecture": facts["architecture"],
        "parameters": f"{facts['parameters']:,}",
        "weights": f"{size_of(facts['bytes'])} in {facts['files']} file{'s' if facts['files'] > 1 else ''}",
        "precision": precision,
        "layers": facts["layers"],
        "hidden size": facts["hidden_size"],
        "vocabulary": facts["vocabulary_size"],
        "context": facts["context_tokens"] and f"{facts['context_tokens']:,} tokens",
        "experts": facts["experts"],
        "can generate": _writes(facts),
        "settings": FILE_NAME if facts["settings_file"] else f"defaults (there is no {FILE_NAME})",
    }
    found = {label: str(value) for label, value in rows.items() if value is not None}
    return found | {f"  {name}": "(none)" if value == "" else str(value) for name, value in settings.items()}


def _bits(quantization: Mapping[str, Any]) -> list[int]:
    """All bits that occur: modules may differ."""
    modules = [one for one in quantization.values() if isinstance(one, Mapping)]
    return sorted({bits for one in (quantization, *modules) if (bits := one.get("bits")) is not None})


def _writes(facts: dict[str, Any]) -> str:
    if not facts["language_model_head"]:
        return "no: it has no language-model head"
    return "yes" if facts["settings"]["generates"] else "no: it only embeds"
