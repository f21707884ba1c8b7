"""From a checkpoint to an MLX folder: the one function that does it all, in order.

Plan, check, write shard by shard, prove, rename. Memory stays near one block of rows whatever the model's size, for
everything but the proof, which loads the models one after the other and is left out where they do not fit.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.convert import writing
from grit_mlx.convert.adapters import deltas_of
from grit_mlx.convert.card import upload, write_card
from grit_mlx.convert.plan import Plan, build_model, make_plan, split_projection
from grit_mlx.convert.quantization import Quantization, decide, quantization, recipe
from grit_mlx.convert.reading import Folder, Source, read_rows, side_files
from grit_mlx.convert.remote import Repository
from grit_mlx.convert.sensitivity import Budget, allocate
from grit_mlx.convert.streaming import Stream
from grit_mlx.convert.verification import fits, verify_conversion
from grit_mlx.errors import ArgumentError, CheckpointError, DownloadError, ModelError, OutputError, TokenizerError
from grit_mlx.evaluation.drift import Drift
from grit_mlx.model import device, hub
from grit_mlx.model.checkpoint import Tensor, read_config
from grit_mlx.model.loading import TOKENIZER_FILES, load_tokenizer
from grit_mlx.model.settings import Settings, read_settings, write_settings

__all__ = ["DEFAULT_RECIPE", "Options", "Report", "Step", "convert", "convert_source", "default_output"]

logger = logging.getLogger("grit_mlx")

DEFAULT_RECIPE = "grit"

# Data of a shard. What an interruption loses is at most that much work.
SHARD_BYTES = 1 << 30

# Room on the disk for the tokenizer, the index and the rest.
_SPARE_BYTES = 64 << 20

_DTYPES = device.DTYPES


@dataclass(frozen=True)
class Step:
    """How far a conversion is.

    Attributes:
        phase: ``"download"``, ``"measure"``, ``"write"`` or ``"verify"``.
        done: bytes, or in phase ``"measure"`` and ``"verify"`` steps.
        total: of them.
        tensors: written so far.
        all_tensors: to be written.
    """

    phase: str
    done: int
    total: int
    tensors: int = 0
    all_tensors: int = 0


Progress = Callable[[Step], None]


@dataclass(frozen=True)
class Options:
    """What a conversion is to make; the defaults copy the weights as they are.

    Attributes:
        quantize: whether to quantise.
        bits: None for the mode's default, as for the next.
        group_size: weights that share a scale.
        mode: a key of ``quantization.MODES``.
        recipe: a key of ``quantization.RECIPES``.
        target_bits: choose bits module by module, so that the whole model has that many bits a weight.
        fit_bytes: choose bits so that the model leaves room to work in that much memory.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; None for what ``config.json`` says, else as stored.
        dequantize: unpack a quantised model.
        adapter: a folder with an adapter, which is fused.
        verify: compare the result with the source; None for where both fit into memory.
        texts: to measure and compare with; None for built-in ones.
        trust_remote_code: run Python code that comes with the model.
        shard_bytes: most data of a file.
    """

    quantize: bool = False
    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    recipe: str = DEFAULT_RECIPE
    target_bits: float | None = None
    fit_bytes: int | None = None
    dtype: str | None = None
    dequantize: bool = False
    adapter: str | Path | None = None
    verify: bool | None = None
    texts: tuple[str, ...] | None = None
    trust_remote_code: bool = False
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ArgumentError: names the option and what it may be.
        """
        quantization(self.bits, self.group_size, self.mode)
        recipe(self.recipe)
        if self.quantize and self.dequantize:
            raise ArgumentError("Choose one of quantize and dequantize.")
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise ArgumentError(f"Unknown dtype {self.dtype!r}: use one of {', '.join(_DTYPES)}.")
        if self.target_bits is not None and self.fit_bytes is not None:
            raise ArgumentError("Choose one of target_bits and fit_bytes.")
        if (self.target_bits is not None or self.fit_bytes is not None) and self.mode != "affine":
            raise ArgumentError(f"Bits can be chosen module by module in mode affine only, not in {self.mode}.")
        if self.shard_bytes < 1:
            raise ArgumentError("shard_bytes must be at least 1.")

    @property
    def base(self) -> Quantization:
        """What most weights are quantised with."""
        return quantization(self.bits, self.group_size, self.mode)


@dataclass(frozen=True)
class Report:
    """What a conversion made.

    Attributes:
        folder: the result.
        source: hub id or folder that it came from.
        source_bytes: of the source's weights.
        output_bytes: of the result's.
        parameters: numbers in the model.
        bits_per_weight: of the result.
        bits: how many parameters have how many bits, as ``{"4": ..., "6": ..., "16": ...}``.
        seconds: of work.
        resumed: whether it went on from an interrupted run.
        dropped: stored tensors that the architecture leaves out.
        drift: None where it was not measured.
    """

    folder: Path
    source: str
    source_bytes: int
    output_bytes: int
    parameters: int
    bits_per_weight: float
    bits: Mapping[str, int]
    seconds: float
    resumed: bool
    dropped: tuple[str, ...]
    drift: Drift | None


def convert(
    source: str | Path,
    output: str | Path | None = None,
    *,
    revision: str | None = None,
    force: bool = False,
    upload_repo: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Convert a Hugging Face or MLX checkpoint to an MLX folder, quantised or not.

    An interrupted conversion goes on when it is called again in the same way.

    Args:
        source: a folder, a hub id or a short name.
        output: the folder to make; None for ``default_output``.
        revision: branch, tag or commit of a hub repository.
        force: replace a model that is there already.
        upload_repo: a hub repository that the result is uploaded to.
        progress: called as the work goes on.
        **options: the fields of ``Options``.

    Raises:
        ArgumentError: options that do not go together.
        ModelError: the source cannot be found, read or converted; one of its kinds.
        OutputError: the result cannot be written, or is there already.
    """
    try:
        chosen = Options(**options)
    except TypeError as error:
        raise ArgumentError(f"{error}.".replace("Options.__init__()", "convert()")) from error
    if not chosen.quantize and (chosen.target_bits is not None or chosen.fit_bytes is not None):
        chosen = replace(chosen, quantize=True)
    place = hub.identify(source)
    target = Path(output).expanduser() if output is not None else default_output(source, chosen)
    _refuse_overwriting(target, place, force)
    opened = _opened(place, revision, chosen)
    report = convert_source(opened, target, chosen, progress=progress)
    if upload_repo is not None:
        upload(report.folder, upload_repo)
    return report


def default_output(source: str | Path, options: Options) -> Path:
    """``NAME-4bit``, ``NAME-mxfp4``, ``NAME-fit`` or ``NAME-mlx`` in the current folder."""
    name = Path(hub.ALIASES.get(str(source).lower(), str(source))).expanduser().name or "model"
    if options.target_bits is not None:
        return Path(f"{name}-{options.target_bits:g}bit")
    if options.fit_bytes is not None:
        return Path(f"{name}-{options.fit_bytes / 1e9:g}GB")
    if not options.quantize:
        return Path(f"{name}-mlx")
    return Path(f"{name}-{options.base.bits}bit" if options.mode == "affine" else f"{name}-{options.mode}")


def convert_source(source: Source, target: Path, options: Options, *, progress: Progress | None = None) -> Report:
    """As ``convert``, from an opened source; the target is replaced.

    Raises:
        As ``convert``.
    """
    began = time.monotonic()
    report = progress or (lambda step: None)
    config = read_config(source.folder)
    tensors, head = split_projection(source.tensors)
    settings = _settings(source.folder, options)
    _require_tokenizer(source.folder)
    dtype = _dtype(options, config)

    def planned(choose: Any) -> Plan:
        return make_plan(
            config,
            tensors,
            source.folder,
            choose=choose,
            dtype=dtype,
            dequantize=options.dequantize,
            fused=options.adapter is not None,
            trust=options.trust_remote_code,
        )

    plain = planned(None)
    model = build_model(plain.config, source.folder, trust=options.trust_remote_code)
    deltas = {}
    if options.adapter is not None:
        wrapped = build_model(plain.config, source.folder, trust=options.trust_remote_code)
        deltas = deltas_of(wrapped, Path(options.adapter).expanduser())
    _warn(plain, options, deltas)

    unpacked = replace(plain, weights=tuple(replace(weight, quantization=None) for weight in plain.weights))
    values = Stream(unpacked, source, model, deltas)

    origins = plain.layout.origins
    source.expect(name for weight in plain.weights for name in origins[weight.name].tensors)
    with source:
        plan = plain
        if options.target_bits is not None or options.fit_bytes is not None:
            budget = Budget(options.target_bits, options.fit_bytes, options.base.group_size)
            measured = allocate(
                unpacked,
                values,
                model,
                budget,
                load_tokenizer(source.folder, config, trust=options.trust_remote_code).encode,
                texts=options.texts,
                progress=lambda done, total: report(Step("measure", done, total)),
            )
            plan = planned(lambda model: measured)
        elif options.quantize:
            predicate = recipe(options.recipe)
            plan = planned(lambda model: decide(model, predicate(model, options.base)))
        shards = writing.shards_of(plan, options.shard_bytes)
        size = sum(shard.nbytes for shard in shards)
        workspace = writing.Workspace(target, _identity(source, plan, shards, options))
        ready = sum(shard.nbytes for shard in shards if workspace.is_done(shard))
        writing.check_space(target, size - ready + source.pending_bytes + _SPARE_BYTES)
        with workspace.open() as folder:
            stream = Stream(plan, source, model, deltas)
            _write_shards(workspace, folder, shards, stream, report)
            _write_rest(source, folder, plan, shards, options, head)
            write_settings(folder, settings)
            drift = _proof(folder, unpacked, values, model, options, report)
            result = _report(source, target, plan, size, drift, workspace.resumed, began)
            about = {**settings.about, **_about(result, options)}
            if plan.headless:
                about["head"] = "none: the checkpoint is a base model, so this one only embeds"
            write_settings(folder, replace(settings, about=about))
            write_card(source, folder, target.name, about)
            workspace.finish()
    return result


# The parts, in order


def _opened(place: Path | str, revision: str | None, options: Options) -> Source:
    """A folder; a hub repository; or, where the hub does not answer, what the cache has of one."""
    if isinstance(place, Path):
        return Folder(place)
    try:
        return Repository(place, revision=revision, code=options.trust_remote_code)
    except DownloadError:
        folder = hub.download(place, revision=revision, code=options.trust_remote_code)
        return Folder(folder, name=place)


def _refuse_overwriting(target: Path, source: Path | str, force: bool) -> None:
    """Before any work: what is there is replaced only on demand, and only where it is a model."""
    if not target.exists():
        return
    if isinstance(source, Path) and target.resolve() in (source.resolve(), *source.resolve().parents):
        raise OutputError(f"{target} holds the model that is to be converted. Name another folder with -o.")
    if not target.is_dir():
        raise OutputError(f"{target} is a file. Name a folder with -o.")
    entries = list(target.iterdir())
    if entries and not (target / "config.json").exists():
        raise OutputError(f"{target} exists and holds no model. Name another folder with -o.")
    if entries and not force:
        raise OutputError(f"{target} exists. Name another folder with -o, or replace it with --force.")


def _settings(folder: Path, options: Options) -> Settings:
    if options.adapter is not None and (Path(options.adapter).expanduser() / "grit.json").exists():
        return read_settings(Path(options.adapter).expanduser())
    return read_settings(folder)


def _require_tokenizer(folder: Path) -> None:
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise TokenizerError(
            f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}), and the result could not be used without one. "
            "Download the model again."
        )


def _dtype(options: Options, config: Mapping[str, Any]) -> mx.Dtype | None:
    """As mlx-lm chooses it: what is asked for, else what the config says, else as stored."""
    text = config.get("text_config") or {}
    said = options.dtype or config.get("torch_dtype") or config.get("dtype") or text.get("dtype")
    return _DTYPES.get(str(said))


def _warn(plan: Plan, options: Options, deltas: Mapping[str, Any]) -> None:
    packed = any(weight.packed is not None for weight in plan.weights)
    if packed and options.quantize:
        logger.warning("The source is quantised already: quantising it again loses more than the original would.")
    if packed and deltas and not options.dequantize:
        logger.warning(
            "The adapter is fused into quantised weights, which are then quantised again: much of a small change can "
            "be lost. Fuse it into the unquantised model, or use --dequantize."
        )
    if plan.headless:
        logger.warning("The checkpoint is a base model without a language-model head: the result only embeds.")
    notable = [name for name in plan.layout.dropped if not _is_expected_to_drop(name)]
    if notable:
        logger.warning(
            "%s leaves out %d tensors of the checkpoint, such as %s.",
            plan.config["model_type"],
            len(notable),
            notable[0],
        )


def _is_expected_to_drop(name: str) -> bool:
    return name.endswith(("rotary_emb.inv_freq", "lm_head.weight"))


def _identity(source: Source, plan: Plan, shards: list[writing.Shard], options: Options) -> dict[str, Any]:
    """All that the bytes of the output depend on."""
    adapter = None
    if options.adapter is not None:
        files = sorted(Path(options.adapter).expanduser().iterdir())
        adapter = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files if path.is_file()]
    headers = hashlib.sha256(b"".join(shard.header for shard in shards)).hexdigest()
    decisions = [str(weight) for weight in plan.weights]
    return {
        "source": [str(source.folder), source.identity],
        "adapter": adapter,
        "config": plan.config,
        "layout": headers,
        "weights": hashlib.sha256("\n".join(decisions).encode()).hexdigest(),
        "versions": {name: version(name) for name in ("mlx", "mlx-lm")},
    }


def _write_shards(
    workspace: writing.Workspace, folder: Path, shards: list[writing.Shard], stream: Stream, report: Progress
) -> None:
    total = sum(shard.data_bytes for shard in shards)
    all_tensors = sum(len(shard.entries) for shard in shards)
    done = tensors = 0
    for shard in shards:
        if workspace.is_done(shard):
            done += shard.data_bytes
            tensors += len(shard.entries)
            report(Step("write", done, total, tensors, all_tensors))
            continue
        with writing.ShardWriter(folder, shard) as writer:
            for weight in shard.weights:
                for row, arrays in stream.blocks(weight):
                    done += writer.write(weight, row, arrays)
                    report(Step("write", done, total, tensors, all_tensors))
                tensors += len(weight.written())
        mx.clear_cache()
        report(Step("write", done, total, tensors, all_tensors))


def _write_rest(
    source: Source,
    folder: Path,
    plan: Plan,
    shards: list[writing.Shard],
    options: Options,
    head: Mapping[str, str],
) -> None:
    """The small files; ``config.json`` last, for without it a folder is no model."""
    for path in side_files(source.folder, code=options.trust_remote_code):
        shutil.copyfile(path, folder / path.name)
    _write_projection(source, folder, options, head)
    writing.write_index(folder, shards, plan.parameters)
    writing.write_json(folder / "config.json", plan.config)


def _write_projection(source: Source, folder: Path, options: Options, head: Mapping[str, str]) -> None:
    """The linear map before pooling: the adapter's, the checkpoint's own, or the file beside it."""
    name = "projection.safetensors"
    folders = [source.folder] if options.adapter is None else [Path(options.adapter).expanduser(), source.folder]
    for place in folders:
        if (place / name).exists():
            shutil.copyfile(place / name, folder / name)
            return
    if not head:
        return
    if "weight" not in head:
        raise CheckpointError(f"{source.folder} holds {head['bias']} without projection.weight. Download it again.")
    arrays = {}
    for leaf, stored in head.items():
        tensor: Tensor = source.locate(stored)
        rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        arrays[leaf] = read_rows(tensor, 0, rows).reshape(tensor.shape)
    mx.save_safetensors(str(folder / name), arrays)


def _proof(
    folder: Path, unpacked: Plan, values: Stream, model: nn.Module, options: Options, report: Progress
) -> Drift | None:
    """The drift, where it is wanted and can be measured."""
    if options.verify is False:
        return None
    if options.verify is None and not fits(unpacked.parameters):
        logger.info("Not verified, because the model does not fit into memory. To do it anyway: verify=True.")
        return None
    try:
        return verify_conversion(
            unpacked,
            values,
            model,
            folder,
            texts=options.texts,
            trust=options.trust_remote_code,
            progress=lambda done, total: report(Step("verify", done, total)),
        )
    except ModelError as error:
        if options.verify:
            raise
        logger.warning("Not verified: %s", error)
        return None


def _report(
    source: Source, target: Path, plan: Plan, size: int, drift: Drift | None, resumed: bool, began: float
) -> Report:
    bits: dict[str, int] = {}
    for weight in plan.weights:
        name = str(8 * weight.dtype.size if weight.quantization is None else weight.quantization.bits)
        bits[name] = bits.get(name, 0) + weight.rows * weight.width
    written = sum(_bytes(shape, dtype) for weight in plan.weights for shape, dtype in weight.written().values())
    return Report(
        folder=target,
        source=source.name,
        source_bytes=sum(tensor.nbytes for tensor in source.tensors.values()),
        output_bytes=size,
        parameters=plan.parameters,
        bits_per_weight=8 * written / plan.parameters,
        bits=dict(sorted(bits.items(), key=lambda item: int(item[0]))),
        seconds=time.monotonic() - began,
        resumed=resumed,
        dropped=plan.layout.dropped,
        drift=drift,
    )


def _bytes(shape: tuple[int, ...], dtype: mx.Dtype) -> int:
    size: int = dtype.size
    for length in shape:
        size *= length
    return size


def _about(report: Report, options: Options) -> dict[str, Any]:
    about: dict[str, Any] = {
        "base_model": report.source,
        "parameters": report.parameters,
        "bits_per_weight": round(report.bits_per_weight, 3),
        "parameters_by_bits": dict(report.bits),
        "made_with": f"grit-mlx {version('grit-mlx')}, mlx {version('mlx')}, mlx-lm {version('mlx-lm')}",
    }
    if options.target_bits is not None or options.fit_bytes is not None:
        about["recipe"] = "measured"
    elif options.quantize:
        about["recipe"] = (
            f"{options.recipe}, {options.base.bits} bits, groups of {options.base.group_size}, {options.mode}"
        )
    if options.adapter is not None:
        about["adapter"] = Path(options.adapter).name
    if report.drift is not None:
        about["drift"] = report.drift.as_dict()
    return about
