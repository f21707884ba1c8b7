"""From a folder to a model, its tokenizer and its settings, by way of mlx-lm's loader.

What this adds to ``mlx_lm.load``: files are checked before anything is computed, traps in ``config.json`` are
corrected, the dtype suits the device, the head is left out where it is not needed, and both attention modes are
proven to work.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.utils import dequantize_model, get_total_parameters, load_model

from grit_mlx.errors import (
    AdapterError,
    ArchitectureError,
    ArgumentError,
    CheckpointError,
    ConfigError,
    ModelError,
    NonFiniteError,
    Option,
    TokenizerError,
    first_line,
)
from grit_mlx.model import device, hub, numpy_exponentials, numpy_linear, threads, widening
from grit_mlx.model.adapters import Adapter, attach, check_base, read_adapter
from grit_mlx.model.attention import broadcast_masks, check_both_modes
from grit_mlx.model.checkpoint import decoder_config, read_config, read_header, read_headers, refuse_pointer
from grit_mlx.model.foreign import HEAD, config_fixes, fitting_classes
from grit_mlx.model.options import MODES, ModelChoice
from grit_mlx.model.prompts import has_grit_format, limit_vocabulary
from grit_mlx.model.sentence_transformers import dense_layers, read_modules
from grit_mlx.model.settings import FILE_NAME, Settings, read_settings, says_trained
from grit_mlx.model.sharding import split
from grit_mlx.model.team import Team

__all__ = [
    "LoadedModel",
    "config_fixes",
    "load",
    "load_error",
    "load_lazily",
    "load_projection",
    "load_tokenizer",
    "refuse_code",
]

logger = logging.getLogger("grit_mlx")

# Part of the free memory that widened weights may take on a CPU.
_WIDENING_FRACTION = 0.7
# Bytes of widened weights from which on someone may wonder where memory went.
_WORTH_TELLING = 1 << 28


# The architectures of GritLM's own checkpoints, which have no grit.json.
_GRITLM = ("mistral", "mixtral")


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be used.

    Attributes:
        model: mlx-lm's model.
        tokenizer: mlx-lm's wrapper; ``tokenizer._tokenizer`` is the Hugging Face tokenizer.
        settings: of the adapter's folder if it has some, else of the model's.
        config: the contents of ``config.json``, corrected.
        folder: where the model came from.
        hidden_size: E; None if it was loaded for generating only.
        projection: the optional linear map from E to P that vectors go through.
        adapter: the folder of the adapter that was put on the model, if any.
        trained_to_embed: whether it says so; GritLM's own checkpoints are known by their shape and chat.
        team: the processes that compute together.
    """

    model: nn.Module
    tokenizer: Any
    settings: Settings
    config: Mapping[str, Any]
    folder: Path
    hidden_size: int | None
    projection: nn.Linear | None
    adapter: Path | None = None
    trained_to_embed: bool = True
    team: Team | None = None

    @property
    def embedding_size(self) -> int | None:
        """Length of the model's vectors; None if it was loaded for generating only."""
        return self.hidden_size if self.projection is None else int(self.projection.weight.shape[0])


def load(choice: ModelChoice, *, mode: str = "unified", team: Team | None = None) -> LoadedModel:
    """Load a model by name.

    Args:
        choice: which, and how.
        mode: ``"unified"``; ``"embedding"`` leaves the language-model head out of memory; ``"generative"`` skips
            the proof of both attention modes, so that any mlx-lm model loads.
        team: the processes that compute together, all of which call this.

    Raises:
        ModelError: one of its kinds, naming the file or tensor at fault.
        ArgumentError: an unknown mode.
    """
    if mode not in MODES:
        raise ArgumentError("Unknown ", Option("mode"), f" {mode!r}: use one of {', '.join(MODES)}.")
    threads.check_process()
    choice = hub.settled(choice)
    adapter = None if choice.adapter is None else Path(choice.adapter).expanduser()
    tuning = None if adapter is None else read_adapter(adapter)
    folder = hub.resolve(choice if tuning is None else with_base(choice, tuning))
    own_settings = adapter is not None and (adapter / FILE_NAME).exists()
    place = adapter if adapter is not None and own_settings else folder
    found = read_settings(place)
    settings = found.override(pooling=choice.pooling, normalized=choice.normalized, attn=choice.attn)
    loaded: LoadedModel = threads.run(_load, folder, adapter, tuning, settings, choice, mode, team)
    trained = says_trained(place, found) or is_gritlm(loaded.config, loaded.tokenizer)
    return replace(loaded, trained_to_embed=trained, team=team)


def is_gritlm(config: Mapping[str, Any], tokenizer: Any) -> bool:
    """Whether a folder without settings may be GritLM's own checkpoint: Mistral or Mixtral, with GRIT's chat."""
    return config.get("model_type") in _GRITLM and has_grit_format(tokenizer._tokenizer)


def _load(
    folder: Path,
    adapter: Path | None,
    tuning: Adapter | None,
    settings: Settings,
    choice: ModelChoice,
    mode: str,
    team: Team | None,
) -> LoadedModel:
    """What ``load`` found, by the thread that computes."""
    # A model that only embeds need not have a head.
    needed = "embedding" if mode == "unified" and not settings.generates else mode
    prepare = partial(_prepared, folder, tuning, choice, needed, team)
    # From then on processes that share a model wait for each other.
    model, config = prepare() if team is None or team.split is None else team.world.together(prepare)
    model.eval()
    _materialize(model)

    tokenizer = load_tokenizer(folder, config, trust=choice.trust_remote_code)
    hidden_size = None
    if mode != "generative":
        try:
            briefly = widening.is_widened(model)
            size = _vocabulary_size(config, tokenizer)
            hidden_size = check_both_modes(model, vocabulary_size=size, briefly=briefly)
        except NonFiniteError as error:
            raise _damaged_tensor(model, folder, tuning) or error from error
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        settings=settings,
        config=config,
        folder=folder,
        hidden_size=hidden_size,
        projection=load_projection(adapter, folder),
        adapter=adapter,
    )


def _prepared(
    folder: Path, tuning: Adapter | None, choice: ModelChoice, mode: str, team: Team | None
) -> tuple[nn.Module, dict[str, Any]]:
    """The model as it will be computed with, or this process's part of it, and its corrected config; not read yet."""
    model, config = _load_weights(folder, mode, trust=choice.trust_remote_code)
    if mode == "embedding" and "lm_head" in model:
        model.pop("lm_head")  # never evaluated so far, so it was never read from the file either
    broadcast_masks(model)
    _cast(model, device.compute_dtype(choice.dtype), lookups_only=mode == "embedding")
    if tuning is not None:
        check_base(tuning, model, config)
        attach(model, tuning)
    if team is not None and team.split is not None:
        if tuning is not None and team.split == "tensor":
            raise AdapterError(
                "An adapter cannot be divided with its model: fuse it first (grit fuse), or split by ",
                *(Option("shard", "pipeline"), "."),
            )
        split(model, team.split, team.world.group)
    return model, config


def load_lazily(choice: ModelChoice) -> nn.Module:
    """The model that an adapter belongs to, without its head if it has none, whose weights are not read.

    Raises:
        ModelError: as ``load``.
    """
    choice = hub.settled(choice)
    tuning = None if choice.adapter is None else read_adapter(Path(choice.adapter).expanduser())
    folder = hub.resolve(choice if tuning is None else with_base(choice, tuning))
    model, config = _load_weights(folder, "embedding", trust=choice.trust_remote_code)
    if tuning is not None:
        check_base(tuning, model, config)
    return model


def with_base(choice: ModelChoice, adapter: Adapter) -> ModelChoice:
    """The choice with the model that the adapter was trained on, if none is named.

    Raises:
        AdapterError: the adapter's model is not on this machine.
    """
    if choice.model is not None or not adapter.base:
        return choice
    try:
        place = hub.identify(adapter.base)
    except ModelError:
        place = adapter.base
    if not isinstance(place, Path) and place not in {model.name for model in hub.local_models()}:
        if adapter.fingerprint:  # the default model is used if it is the right one under another name
            return choice
        raise AdapterError(
            f"The adapter {adapter.folder} was trained on {adapter.base}, which is not on this machine. Name it with ",
            *(Option("model", adapter.base), " to download it, or name another copy of it."),
        )
    logger.info("Using %s, the model that the adapter was trained on.", adapter.base)
    return replace(choice, model=adapter.base)


def _load_weights(folder: Path, mode: str, *, trust: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The model with lazy weights, and its corrected config."""
    config = read_config(folder)
    tensors = read_headers(folder)
    # mlx-lm before 0.32 (the last for Python 3.10) runs such code without asking, so the question is asked here.
    if not trust:
        refuse_code(config, folder)
    floats = any(tensor.dtype.startswith("F8") for tensor in tensors.values())
    method = quantization_method(config) or ("fp8" if floats else "")
    trusted: Any = {"trust_remote_code": True} if "trust_remote_code" in signature(load_model).parameters else {}
    fixes = config_fixes(config, tensors)
    fitting = fitting_classes(tensors, without_head=mode == "embedding")
    failure: Exception | SystemExit | None = None
    attempts: tuple[dict[str, Any], ...] = ({}, {} if "model_file" in config else {"get_model_classes": fitting})
    for options in attempts:
        try:
            model, config = load_model(folder, lazy=True, model_config=fixes, **trusted, **options)
            _refuse_whole_numbers(model, method, folder)
            return model, config
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError, SystemExit) as error:
            failure = failure or error
            if not str(error).startswith(("Missing", "Received")):
                break
            if options and lacks_only_head(error):
                raise CheckpointError(
                    f"{folder} has no language-model head ({HEAD}.weight): it was exported for embedding. Load it "
                    "with mode='embedding', or take the checkpoint of the full model to generate."
                ) from error
    assert failure is not None
    if method == "fp8":
        raise _quantized_elsewhere(method, folder, _detail(failure)) from failure
    raise load_error(failure, folder, config) from failure


def lacks_only_head(error: Exception | SystemExit) -> bool:
    """Whether all that mlx-lm misses in a checkpoint is its head."""
    lines = [line.strip().rstrip(",.") for line in str(error).splitlines()]
    return lines[0].startswith("Missing") and all(line.startswith(f"{HEAD}.") for line in lines[1:] if line)


def _refuse_whole_numbers(model: nn.Module, method: str, folder: Path) -> None:
    """Refuse integers without scales, which would be computed with as they are."""
    for name, module in model.named_modules():
        weight = module.get("weight")
        whole = isinstance(weight, mx.array) and not mx.issubdtype(weight.dtype, mx.floating)
        if whole and not any("scale" in key for key in module):
            raise _quantized_elsewhere(method or "another tool", folder, f"{name} has whole numbers without scales")


def _quantized_elsewhere(method: str, folder: Path, detail: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} holds weights quantised with {method}, which mlx-lm cannot read: {detail}. "
        "Use the model's original checkpoint; 'grit convert -q' quantises it."
    )


def quantization_method(config: Mapping[str, Any]) -> str:
    """How other tools quantised the weights, such as ``"bitsandbytes"`` or ``"fp8"``; empty if none did."""
    quantization = decoder_config(config).get("quantization_config")
    return str(quantization.get("quant_method") or "") if isinstance(quantization, Mapping) else ""


def refuse_code(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model that brings Python code of its own.

    Raises:
        ArchitectureError: it does.
    """
    if code := config.get("model_file"):
        raise ArchitectureError(
            f"{folder} brings its own code ({code}). Pass ", Option("trust_remote_code", True), " if you trust it."
        )


def load_error(error: Exception | SystemExit, folder: Path, config: Mapping[str, Any]) -> ModelError:
    """What mlx-lm says about a model that it cannot load, as one of our errors."""
    text, kind = str(error).strip(), config["model_type"]
    if isinstance(error, SystemExit):  # mlx-lm's olmo ends the process
        return ArchitectureError(f"mlx-lm's {kind} needs a package that is not installed, so {folder} cannot be read.")
    if isinstance(error, TypeError) and "missing" in text and "argument" in text:
        return ConfigError(f"{folder / 'config.json'} lacks what {kind} needs: {text.rpartition(': ')[2]}.")
    if "not supported" in text and "Model type" in text:
        return ArchitectureError(
            f"mlx-lm has no architecture {kind!r}, which {folder / 'config.json'} asks for. "
            "Update mlx-lm, or use a model it knows, such as Mistral, Mixtral, Llama, Qwen or Gemma."
        )
    if method := quantization_method(config):
        return _quantized_elsewhere(method, folder, _detail(error))
    if text.startswith(("Missing", "Received", "Expected shape")):
        return CheckpointError(
            f"The weights in {folder} do not fit its config.json: {_detail(error)}. "
            "Download or convert the model again."
        )
    return CheckpointError(f"Cannot load {folder} as {kind}: {_detail(error)}.")


def _detail(error: Exception | SystemExit) -> str:
    """The first line of what mlx-lm says, with the second where the first announces it."""
    lines = [line.strip() for line in (str(error).strip() or repr(error)).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(",.")


def _cast(model: nn.Module, target: mx.Dtype | None, *, lookups_only: bool = False) -> None:
    """Bring the weights to the dtype that is computed in; lazily, nothing is read yet.

    Args:
        model: as it was loaded.
        target: None to leave all as it is.
        lookups_only: the token table is not also the head, so it is not worth widening for the rows that texts need.
    """
    if target is None:
        return
    quantized = any(name.endswith(".scales") for name, _ in _parameters(model))
    if device.should_dequantize(target):
        needed, free = 4 * get_total_parameters(model), device.available_memory()
        if needed > _WIDENING_FRACTION * free:
            logger.warning(
                "As float32, the fast dtype on a CPU, the weights need %.1f GB and %.1f GB are free: each layer widens "
                "its own while it computes, which is slower.",
                needed / 1e9,
                free / 1e9,
            )
            widening.prepare(model)
            return
        if quantized:
            logger.log(
                logging.INFO if needed > _WORTH_TELLING else logging.DEBUG,
                "Quantised weights are widened to float32 (%.2f GB), the fast dtype on a CPU.",
                needed / 1e9,
            )
            tables = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.QuantizedEmbedding)]
            model.set_dtype(target)  # scales first: in their own dtype the widened weights would be rounded to it
            dequantize_model(model)
            if lookups_only:
                model.update_modules(tree_unflatten(tables))
    model.set_dtype(target)


def _materialize(model: nn.Module) -> None:
    """Read the weights, layer by layer: a cast then never holds more than one layer twice."""
    here = device.current_device()
    for layer in model.layers:
        mx.eval(layer.parameters())
        if here.blas == "bundled":
            numpy_linear.prepare(layer)
        if here.kind == "cpu":
            numpy_exponentials.prepare(layer)
    if here.blas == "bundled":
        numpy_linear.prepare(model)  # the head
    elif here.blas == "openblas":
        numpy_linear.prepare_rows(model)
    # Not only the parameters: position embeddings keep frequencies of their own, and what is lazy would be computed
    # by the first thread that uses it, which is not the one it belongs to.
    mx.eval(threads.arrays_of(model))


def load_tokenizer(folder: Path, config: Mapping[str, Any], *, trust: bool) -> Any:
    """mlx-lm's wrapper of a model folder's tokenizer.

    Raises:
        TokenizerError: its files are missing or broken, or it belongs to a larger vocabulary than the model's.
    """
    hub.tokenizer_files(folder)
    try:
        tokenizer = mlx_lm_utils.load_tokenizer(
            folder, {"trust_remote_code": trust}, eos_token_ids=config.get("eos_token_id")
        )
    except Exception as error:  # the tokenizer libraries raise anything, a bare Exception from Rust included
        for path in hub.tokenizer_files(folder):
            refuse_pointer(path)
        raise TokenizerError(
            f"Cannot read the tokenizer in {folder}: {first_line(error)} Download the model again."
        ) from error
    size = _vocabulary_size(config, tokenizer)
    added = [token for token in tokenizer.added_tokens_decoder if token >= size]
    # Tokens that somebody added and no model knows do no harm as long as no text holds them.
    if tokenizer.vocab_size - sum(token < tokenizer.vocab_size for token in added) > size:
        raise TokenizerError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size} tokens and the model {size}: "
            "they belong to different models."
        )
    limit_vocabulary(tokenizer._tokenizer, size)
    _forget_texts(tokenizer._tokenizer)
    return tokenizer


def _forget_texts(tokenizer: Any) -> None:
    """Keep no texts in memory: tokenizers remembers the tokens of every word.

    Without a pre-tokenizer, as in Mistral's tokenizer, a word is a whole text. The next one is another, so remembering
    it saves nothing, and takes up to 100 MB.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    resize = getattr(getattr(fast, "model", None), "_resize_cache", None)
    if fast is not None and resize is not None and fast.pre_tokenizer is None:
        resize(0)


def _vocabulary_size(config: Mapping[str, Any], tokenizer: Any) -> int:
    return int(decoder_config(config).get("vocab_size") or len(tokenizer))


def load_projection(*folders: Path | None) -> nn.Linear | None:
    """The optional linear map after pooling, float32, from the first folder that has one."""
    path = next((path for folder in folders if folder and (path := folder / hub.PROJECTION).exists()), None)
    if path is not None:
        if "weight" not in read_header(path):
            raise CheckpointError(f"{path} has no tensor 'weight' of shape (projected size, hidden size).")
        arrays: Any = mx.load(str(path))
        layers = arrays["weight"], arrays.get("bias")
    else:
        # A folder of this project keeps the projection in a file of its own.
        foreign = [folder for folder in folders if folder and not (folder / FILE_NAME).exists()]
        modules = next((found for folder in foreign if (found := read_modules(folder))), None)
        dense = None if modules is None else dense_layers(modules)
        if dense is None:
            return None
        layers = dense
    weight, bias = layers
    projection = nn.Linear(1, 1, bias=bias is not None)
    projection.update(
        {"weight": weight.astype(mx.float32)} | ({} if bias is None else {"bias": bias.astype(mx.float32)})
    )
    mx.eval(projection.parameters())
    return projection


def _parameters(model: nn.Module) -> list[tuple[str, mx.array]]:
    return tree_flatten(model.parameters())  # type: ignore[return-value] # its other form is a dictionary


def _damaged_tensor(model: nn.Module, folder: Path, tuning: Adapter | None) -> NonFiniteError | None:
    for name, value in _parameters(model):
        if mx.issubdtype(value.dtype, mx.floating) and not mx.all(mx.isfinite(value)).item():
            of_adapter = tuning is not None and name in tuning.weights
            where = tuning.folder if tuning is not None and of_adapter else folder
            advice = "Copy or train the adapter again." if of_adapter else "Download or convert the model again."
            return NonFiniteError(f"The weights in {where} are damaged: {name} holds NaN or infinity. {advice}")
    return None
