"""From a checkpoint to an MLX folder: plan, check, write shard by shard, prove, rename.

Memory stays near a few blocks of rows, however large the model, in the proof as well.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from grit_mlx.convert.adapters import deltas_of
from grit_mlx.convert.card import upload, write_card
from grit_mlx.convert.modules import write_modules
from grit_mlx.convert.options import MODES, ConversionOptions
from grit_mlx.convert.plan import ConversionPlan, make_plan
from grit_mlx.convert.quantization import Quantization, base_of, chosen_by
from grit_mlx.convert.reading import Source, read_rows, side_files
from grit_mlx.convert.remote import open_source
from grit_mlx.convert.report import ConversionReport, ConversionStep, Progress, about_of, report_of
from grit_mlx.convert.sensitivity import Budget, allocate
from grit_mlx.convert.streaming import Stream
from grit_mlx.convert.verification import verify_conversion
from grit_mlx.convert.writing import Shard, is_written, shards_of, write_index, write_json, write_shards
from grit_mlx.errors import CheckpointError, ModelError, Option, OutputError, unwritable
from grit_mlx.evaluation.drift import Drift
from grit_mlx.files.folder import require_space, resumable_folder
from grit_mlx.model import hub
from grit_mlx.model.adapters import read_adapter
from grit_mlx.model.loading import load_lazily, load_tokenizer, with_base
from grit_mlx.model.options import ModelChoice
from grit_mlx.model.sentence_transformers import dense_layers, read_modules
from grit_mlx.model.settings import FILE_NAME, Settings, read_settings, write_settings
from grit_mlx.options import from_mapping

__all__ = ["convert", "convert_source", "default_output"]

logger = logging.getLogger("grit_mlx")

# Space on the disk for the tokenizer, the index and the rest.
_SPARE_BYTES = 64 << 20

# Numbers of two tables that are compared at a time.
_COMPARED = 1 << 20

# Share of the weights that stay as they are from which on someone should know.
_MANY_UNQUANTIZED = 0.2

_PROJECTION = "projection.safetensors"


def convert(
    source: str | Path | ModelChoice,
    output: str | Path | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> ConversionReport:
    """Convert a Hugging Face or MLX checkpoint, or a GGUF file, to an MLX folder, quantised or not.

    The same call resumes an interrupted conversion.

    Args:
        source: a folder, a GGUF file, a hub id, a short name or a choice; its adapter is fused into the weights.
        output: the folder to make; None for ``default_output``.
        progress: called as the work goes on.
        **options: the other fields of ``ConversionOptions``, and of ``ModelChoice`` ``adapter``, ``revision`` and
            ``trust_remote_code``.

    Raises:
        ArgumentError: options that do not go together.
        ModelError: the source cannot be found, read or converted; one of its kinds.
        OutputError: the result cannot be written, or is there already.
    """
    given = {name: options.pop(name) for name in ("adapter", "revision", "trust_remote_code") if name in options}
    chosen = from_mapping(ConversionOptions, {**options, "output": output})
    choice = replace(source if isinstance(source, ModelChoice) else ModelChoice(source), **given)
    if choice.adapter is not None:
        choice = with_base(choice, read_adapter(Path(choice.adapter).expanduser()))
    name = hub.default_model() if choice.model is None else choice.model
    place = hub.resolve(choice) if name is None else hub.identify(name)  # resolve says what to do
    if choice.adapter is not None and isinstance(place, Path):
        load_lazily(replace(choice, model=place))  # refuses an adapter of another model
    target = _target_of(place, chosen)
    _refuse_overwriting(target, place, chosen.force)
    report = convert_source(open_source(place, choice), target, choice, chosen, progress=progress)
    if chosen.upload_repo is not None:
        upload(report.folder, chosen.upload_repo)
    return report


def _target_of(place: Path | str, options: ConversionOptions) -> Path:
    if options.output is None:
        return default_output(place, options)
    try:
        target = Path(options.output).expanduser()
        target.exists()  # a name that no system takes fails here
    except (OSError, RuntimeError, ValueError) as error:
        raise OutputError(unwritable(options.output, error)) from error
    return target


def default_output(place: Path | str, options: ConversionOptions) -> Path:
    """``NAME-4bit``, ``NAME-mxfp4``, ``NAME-fit`` or ``NAME-mlx`` in the current folder."""
    path = Path(place)
    name = (path.stem if path.suffix.lower() == ".gguf" else path.name) or "model"
    base = base_of(options)
    if options.target_bits is not None:
        return Path(f"{name}-{options.target_bits:g}bit")
    if options.fit_bytes is not None:
        return Path(f"{name}-{options.fit_bytes / 1e9:g}GB")
    if not options.quantize:
        return Path(f"{name}-mlx")
    return Path(f"{name}-{base.bits}bit" if base.mode == "affine" else f"{name}-{base.mode}")


def convert_source(
    source: Source,
    target: Path,
    choice: ModelChoice,
    options: ConversionOptions,
    *,
    progress: Progress | None = None,
) -> ConversionReport:
    """As ``convert``, from an opened source; the target is replaced.

    Raises:
        As ``convert``.
    """
    began = time.monotonic()
    tell = progress or (lambda step: None)
    adapter = None if choice.adapter is None else Path(choice.adapter).expanduser()
    settings = read_settings(adapter if adapter is not None and (adapter / FILE_NAME).exists() else source.folder)
    hub.tokenizer_files(source.folder)
    plan, model = make_plan(source, dtype=options.dtype, dequantize=options.dequantize, trust=choice.trust_remote_code)
    deltas = {} if adapter is None else deltas_of(model, adapter)
    values = Stream(plan.quantized({}), source, model, deltas)
    source.expect(name for weight in plan.weights for name in plan.layout.origins[weight.name].tensors)
    with source:
        _warn(plan, source, options, fuses=bool(deltas))
        if options.quantize:
            plan = plan.quantized(_chosen(values, source, choice, options, tell))
            _warn_unquantized(plan, values, options)
        shards = shards_of(plan, options.shard_bytes)
        size = sum(shard.nbytes for shard in shards)
        with resumable_folder(target, identity=_identity(source, plan, shards, adapter)) as (folder, resumed):
            missing = sum(shard.nbytes for shard in shards if not is_written(folder, shard))
            advice = ("Make room, choose another ", Option("output"), ", or fewer bits.")
            require_space(target, missing + source.pending_bytes + _SPARE_BYTES, *advice)
            write_shards(folder, shards, Stream(plan, source, model, deltas), tell)
            _write_rest(folder, source, plan, shards, choice, settings)
            write_settings(folder, settings)  # the proof heeds them
            drift = _proof(folder, values, choice, options, tell)
            seconds = time.monotonic() - began
            report = report_of(source, target, plan, output_bytes=size, seconds=seconds, resumed=resumed, drift=drift)
            about = about_of(report, options, adapter)
            if plan.headless:
                about["head"] = "none: the checkpoint is a base model, so this one only embeds"
            about = {**settings.about, **about}
            write_settings(folder, replace(settings, about=about))
            write_card(source, folder, options.upload_repo or target.name, about, drift)
    return report


# The parts, in order


def _refuse_overwriting(target: Path, source: Path | str, force: bool) -> None:
    """Refuse before any work: what is there is replaced only on demand, and only if it is a model."""
    if not target.exists():
        return
    another = ("Choose another ", Option("output"), ".")
    if isinstance(source, Path) and target.resolve() in (source.resolve(), *source.resolve().parents):
        raise OutputError(f"{target} holds the model that is to be converted. ", *another)
    if not target.is_dir():
        raise OutputError(f"{target} is a file. ", *another)
    entries = list(target.iterdir())
    if entries and not (target / "config.json").exists():
        raise OutputError(f"{target} exists and is not a model folder. ", *another)
    if entries and not force:
        raise OutputError(f"{target} exists. ", *another[:2], ", or replace it with ", Option("force", True), ".")


def _warn(plan: ConversionPlan, source: Source, options: ConversionOptions, *, fuses: bool) -> None:
    packed = any(weight.packed is not None for weight in plan.weights)
    if packed and options.quantize:
        logger.warning("The source is quantised already: quantising it again loses more than the original would.")
    if packed and fuses and not options.dequantize:
        logger.warning(
            "The adapter is fused into quantised weights, which are then quantised again: much of a small change can "
            "be lost. Fuse it into the unquantised model, or use %s.",
            Option("dequantize", True),
        )
    if plan.headless:
        logger.warning("The checkpoint is a base model without a language-model head: the result only embeds.")
    expected = ("rotary_emb.inv_freq", "lm_head.weight")
    if (head := _other_head(plan, source)) is not None:
        logger.warning(
            "%s differs from the token table, and config.json ties the two (tie_word_embeddings): it is left out. If "
            "the model predicts wrongly, set tie_word_embeddings to false in config.json and convert again.",
            head,
        )
    if notable := [name for name in plan.layout.dropped if not name.endswith(expected)]:
        kind = plan.config["model_type"]
        logger.warning("%s does not use %d tensors of the checkpoint, such as %s.", kind, len(notable), notable[0])


def _other_head(plan: ConversionPlan, source: Source) -> str | None:
    """The name of a stored head that is dropped because the config ties it, though it is not the token table."""
    head = next((name for name in plan.layout.dropped if name.endswith("lm_head.weight")), None)
    table = next((o for name, o in plan.layout.origins.items() if name.endswith("embed_tokens.weight")), None)
    if head is None or table is None or len(table.tensors) != 1:
        return None
    stored, tied = source.locate(head), source.locate(table.tensors[0])
    if stored.shape != tied.shape:
        return head
    rows, step = math.prod(stored.shape[:-1]), max(1, _COMPARED // stored.shape[-1])
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if not mx.array_equal(read_rows(stored, start, stop), read_rows(tied, start, stop)).item():
            return head
    return None


def _warn_unquantized(plan: ConversionPlan, values: Stream, options: ConversionOptions) -> None:
    """Say how many weights stay as they are though quantising was asked for, if they are many, and why."""
    base = base_of(options)
    modules = dict(values.model.named_modules())
    left: Counter[int] = Counter()  # numbers of weights that could be quantised, by their rows' width
    for weight in plan.weights:
        if weight.quantization is None and hasattr(modules.get(weight.module), "to_quantized"):
            left[weight.width] += weight.rows * weight.width
    share = sum(left.values()) / plan.parameters
    if share < _MANY_UNQUANTIZED:
        return
    nothing = all(weight.quantization is None for weight in plan.weights)
    text = "Nothing is quantised" if nothing else f"{100 * share:.0f} % of the weights are not quantised"
    width, count = left.most_common(1)[0]
    if width % base.group_size == 0 or 2 * count < sum(left.values()):
        logger.warning("%s: the recipe leaves them as they are.", text)
        return
    why = f"{text}: rows of {width} do not divide into groups of {base.group_size}."
    if fitting := [size for size in MODES[base.mode][1] if width % size == 0]:
        logger.warning("%s Use %s.", why, Option("group_size", max(fitting)))
    else:
        logger.warning("%s No group size of mode %s fits.", why, base.mode)


def _chosen(
    values: Stream, source: Source, choice: ModelChoice, options: ConversionOptions, tell: Progress
) -> dict[str, Quantization]:
    """How each module is quantised, by its path."""
    base = base_of(options)
    if not options.measured:
        return chosen_by(options.recipe, values.model, base)
    tokenizer = load_tokenizer(source.folder, values.plan.config, trust=choice.trust_remote_code)
    return allocate(
        values,
        Budget(options.target_bits, options.fit_bytes, base.group_size),
        tokenizer.encode,
        texts=options.texts,
        progress=lambda done, total: tell(ConversionStep("measure", done, total)),
    )


def _identity(source: Source, plan: ConversionPlan, shards: Sequence[Shard], adapter: Path | None) -> dict[str, Any]:
    """Everything that the bytes of the output depend on."""
    files = sorted(path for path in ([] if adapter is None else adapter.iterdir()) if path.is_file())
    return {
        "source": source.identity,
        "adapter": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "config": plan.output_config(),
        "layout": hashlib.sha256(b"".join(shard.header for shard in shards)).hexdigest(),
        "weights": hashlib.sha256("\n".join(map(str, plan.weights)).encode()).hexdigest(),
        "versions": {name: version(name) for name in ("mlx", "mlx-lm")},
    }


def _write_rest(
    folder: Path,
    source: Source,
    plan: ConversionPlan,
    shards: Sequence[Shard],
    choice: ModelChoice,
    settings: Settings,
) -> None:
    """The small files; ``config.json`` last, for without it a folder is not a model."""
    for path in side_files(source.folder, code=choice.trust_remote_code):
        shutil.copyfile(path, folder / path.name)
    _write_projection(folder, source, plan.projection, choice)
    write_index(folder, shards, plan.parameters)
    config = plan.output_config()
    if reason := write_modules(folder, settings, config):
        logger.info("sentence-transformers cannot open the result: %s.", reason)
    else:
        config.setdefault("is_causal", True)
    write_json(folder / "config.json", config)


def _write_projection(folder: Path, source: Source, stored: Mapping[str, str], choice: ModelChoice) -> None:
    """The linear map before pooling: the adapter's, the file beside the checkpoint, or the checkpoint's own."""
    for place in ([] if choice.adapter is None else [Path(choice.adapter).expanduser()]) + [source.folder]:
        if (place / _PROJECTION).exists():
            shutil.copyfile(place / _PROJECTION, folder / _PROJECTION)
            return
    modules = None if (source.folder / FILE_NAME).exists() else read_modules(source.folder)
    if modules is not None and (dense := dense_layers(modules)) is not None:
        layers = zip(("weight", "bias"), dense, strict=True)
        mx.save_safetensors(str(folder / _PROJECTION), {name: layer for name, layer in layers if layer is not None})
        return
    if not stored:
        return
    if "weight" not in stored:
        raise CheckpointError(f"{source.folder} holds {stored['bias']} without projection.weight. Download it again.")
    tensors = {leaf: source.locate(name) for leaf, name in stored.items()}
    arrays = {
        leaf: read_rows(tensor, 0, math.prod(tensor.shape[:-1])).reshape(tensor.shape)
        for leaf, tensor in tensors.items()
    }
    mx.save_safetensors(str(folder / _PROJECTION), arrays)


def _proof(
    folder: Path, values: Stream, choice: ModelChoice, options: ConversionOptions, tell: Progress
) -> Drift | None:
    """The drift, if it is wanted and can be measured."""
    if options.verify is False:
        return None
    try:
        return verify_conversion(
            values,
            ModelChoice(folder, trust_remote_code=choice.trust_remote_code),
            texts=options.texts,
            complete=options.verify is True,
            progress=lambda done, total: tell(ConversionStep("verify", done, total)),
        )
    except ModelError as error:
        if options.verify:
            raise
        logger.warning("Not verified: %s", error)
        return None
