"""From a folder to a model, its tokenizer and its settings, by way of mlx-lm's loader.

What this adds to ``mlx_lm.load``: files are checked before anything is computed, traps in ``config.json`` are
corrected, the dtype suits the device, the head is left out where it is not needed, and both attention modes are
proven to work.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.utils import dequantize_model, get_total_parameters, load_adapters, load_model

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
from grit_mlx.model import device, hub, numpy_linear
from grit_mlx.model.attention import check_both_modes
from grit_mlx.model.checkpoint import decoder_config, read_config, read_header, read_headers
from grit_mlx.model.options import MODES, ModelChoice
from grit_mlx.model.settings import FILE_NAME, Settings, read_settings

__all__ = [
    "LoadedModel",
    "attach_adapter",
    "checked_adapter",
    "config_fixes",
    "load",
    "load_error",
    "load_tokenizer",
    "refuse_code",
]

logger = logging.getLogger("grit_mlx")

# Part of the free memory that widened weights may take on a CPU.
_WIDENING_FRACTION = 0.7
# Bytes of widened weights from which on someone may wonder where memory went.
_WORTH_TELLING = 1 << 28

_ADAPTER_FILES = ("adapter_config.json", "adapters.safetensors")


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
    """

    model: nn.Module
    tokenizer: Any
    settings: Settings
    config: Mapping[str, Any]
    folder: Path
    hidden_size: int | None
    projection: nn.Linear | None
    adapter: Path | None = None

    @property
    def embedding_size(self) -> int | None:
        """Length of the model's vectors; None if it was loaded for generating only."""
        return self.hidden_size if self.projection is None else int(self.projection.weight.shape[0])


def load(choice: ModelChoice, *, mode: str = "unified") -> LoadedModel:
    """Load a model by name.

    Args:
        choice: which, and how.
        mode: ``"unified"``; ``"embedding"`` leaves the language-model head out of memory; ``"generative"`` skips
            the proof of both attention modes, so that any mlx-lm model loads.

    Raises:
        ModelError: one of its kinds, naming the file or tensor at fault.
        ArgumentError: an unknown mode.
    """
    if mode not in MODES:
        raise ArgumentError("Unknown ", Option("mode"), f" {mode!r}: use one of {', '.join(MODES)}.")
    target = device.compute_dtype(choice.dtype)
    folder = hub.resolve(choice)
    adapter = None if choice.adapter is None else checked_adapter(Path(choice.adapter).expanduser())
    own_settings = adapter is not None and (adapter / FILE_NAME).exists()
    settings = read_settings(adapter if adapter is not None and own_settings else folder)
    settings = settings.override(pooling=choice.pooling, normalized=choice.normalized, attn=choice.attn)

    model, config = _load_weights(folder, trust=choice.trust_remote_code)
    if mode == "embedding" and "lm_head" in model:
        model.pop("lm_head")  # never evaluated so far, so it was never read from the file either
    _cast(model, target, lookups_only=mode == "embedding")
    if adapter is not None:
        attach_adapter(model, adapter)
    model.eval()
    _materialize(model)

    tokenizer = load_tokenizer(folder, config, trust=choice.trust_remote_code)
    hidden_size = None
    if mode != "generative":
        try:
            hidden_size = check_both_modes(model, vocabulary_size=_vocabulary_size(config, tokenizer))
        except NonFiniteError as error:
            raise _damaged_tensor(model, folder) or error from error
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        settings=settings,
        config=config,
        folder=folder,
        hidden_size=hidden_size,
        projection=_load_projection(adapter, folder),
        adapter=adapter,
    )


def config_fixes(config: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any]:
    """The entries of a ``config.json`` that mlx-lm would misread, in the form that it reads.

    Args:
        config: the file's contents.
        tensors: names of the checkpoint's tensors.

    Returns:
        Entries to put over ``config``.
    """
    fixes: dict[str, Any] = {}
    # mlx-lm's llama ties the embeddings by default, and then silently drops the head; Hugging
    # Face leaves the key out where it has its default, which differs by architecture. The checkpoint knows.
    if "tie_word_embeddings" not in config and "text_config" not in config:
        fixes["tie_word_embeddings"] = not any(name.endswith("lm_head.weight") for name in tensors)
    # transformers 5 writes rope_parameters where mlx-lm reads rope_theta and rope_scaling.
    rope = config.get("rope_parameters")
    if isinstance(rope, Mapping):
        if isinstance(rope.get("full_attention"), Mapping):  # one table for each kind of layer, as in Gemma 3
            local = rope.get("sliding_attention") or {}
            if "rope_theta" in local and "rope_local_base_freq" not in config:
                fixes["rope_local_base_freq"] = local["rope_theta"]
            rope = rope["full_attention"]
        if "rope_theta" in rope and "rope_theta" not in config:
            fixes["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        if scaling.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
            fixes["rope_scaling"] = scaling
    return fixes


def _load_weights(folder: Path, *, trust: bool) -> tuple[nn.Module, dict[str, Any]]:
    """The model with lazy weights, and its corrected config."""
    config = read_config(folder)
    tensors = read_headers(folder)
    # mlx-lm before 0.32 (the last for Python 3.10) runs such code without asking, so the question is asked here.
    if not trust:
        refuse_code(config, folder)
    trusted: Any = {"trust_remote_code": True} if "trust_remote_code" in signature(load_model).parameters else {}
    try:
        model, config = load_model(folder, lazy=True, model_config=config_fixes(config, tensors), **trusted)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise load_error(error, folder, config) from error
    return model, config


def refuse_code(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse a model that brings Python code of its own.

    Raises:
        ArchitectureError: it does.
    """
    if code := config.get("model_file"):
        raise ArchitectureError(
            f"{folder} brings its own code ({code}). Pass ", Option("trust_remote_code", True), " if you trust it."
        )


def load_error(error: Exception, folder: Path, config: Mapping[str, Any]) -> ModelError:
    """What mlx-lm says about a model that it cannot load, as one of our errors."""
    text, kind = str(error).strip(), config["model_type"]
    if isinstance(error, TypeError) and "missing" in text and "argument" in text:
        return ConfigError(f"{folder / 'config.json'} lacks what {kind} needs: {text.rpartition(': ')[2]}.")
    if "not supported" in text and "Model type" in text:
        return ArchitectureError(
            f"mlx-lm has no architecture {kind!r}, which {folder / 'config.json'} asks for. "
            "Update mlx-lm, or use a model it knows, such as Mistral, Mixtral, Llama, Qwen or Gemma."
        )
    if text.startswith(("Missing", "Received", "Expected shape")):
        return CheckpointError(
            f"The weights in {folder} do not fit its config.json: {_detail(error)}. "
            "Download or convert the model again."
        )
    return CheckpointError(f"Cannot load {folder} as {kind}: {_detail(error)}.")


def _detail(error: Exception) -> str:
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
                "The weights stay as they are stored, which computes slowly on a CPU: as float32 they need %.1f GB "
                "and %.1f GB are free.",
                needed / 1e9,
                free / 1e9,
            )
            return
        if quantized:
            logger.log(
                logging.INFO if needed > _WORTH_TELLING else logging.DEBUG,
                "Quantised weights are widened to float32 (%.2f GB), the fast dtype on a CPU.",
                needed / 1e9,
            )
            tables = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.QuantizedEmbedding)]
            dequantize_model(model)
            if lookups_only:
                model.update_modules(tree_unflatten(tables))
    model.set_dtype(target)


def _materialize(model: nn.Module) -> None:
    """Read the weights, layer by layer: a cast then never holds more than one layer twice."""
    reference_blas = device.current_device().blas == "bundled"
    for layer in model.layers:
        mx.eval(layer.parameters())
        if reference_blas:
            numpy_linear.prepare(layer)
    mx.eval(model.parameters())


def checked_adapter(folder: Path) -> Path:
    """The folder, once it is known to hold an adapter in mlx-lm's layout.

    Raises:
        AdapterError: a file is missing or broken, or it has another layout.
    """
    if not folder.is_dir():
        raise AdapterError(f"There is no adapter folder {folder}.")
    if (folder / "adapter_model.safetensors").exists():
        raise AdapterError(
            f"{folder} holds a PEFT adapter; grit-mlx reads mlx-lm's layout ({', '.join(_ADAPTER_FILES)})."
        )
    for name in _ADAPTER_FILES:
        if not (folder / name).exists():
            raise AdapterError(f"{folder} is not an adapter folder: it has no {name}.")
    try:
        read_header(folder / _ADAPTER_FILES[1])
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    return folder


def attach_adapter(model: nn.Module, folder: Path) -> None:
    """Put an adapter's layers around the model's, with their weights.

    Raises:
        AdapterError: it belongs to another model.
    """
    try:
        load_adapters(model, str(folder))
        # mlx-lm before 0.32 drops a tensor that it has no place for.
        known = {name for name, _ in _parameters(model)}
        for name in read_header(folder / _ADAPTER_FILES[1]):
            if name not in known:
                raise ValueError(f"{name} is not in the model")
    except (ValueError, KeyError, AttributeError, TypeError, RuntimeError, OSError) as error:
        raise AdapterError(
            f"The adapter {folder} does not fit the model: {_detail(error)}. Use it with the model it was trained on."
        ) from error


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
        raise TokenizerError(
            f"Cannot read the tokenizer in {folder}: {first_line(error)} Download the model again."
        ) from error
    size = _vocabulary_size(config, tokenizer)
    if tokenizer.vocab_size > size:
        # An id beyond the embedding table would read other memory without an error.
        raise TokenizerError(
            f"The tokenizer in {folder} has {tokenizer.vocab_size} tokens and the model {size}: "
            "they belong to different models."
        )
    return tokenizer


def _vocabulary_size(config: Mapping[str, Any], tokenizer: Any) -> int:
    return int(decoder_config(config).get("vocab_size") or len(tokenizer))


def _load_projection(*folders: Path | None) -> nn.Linear | None:
    """The optional linear map after pooling, float32, from the first folder that has one."""
    path = next((path for folder in folders if folder and (path := folder / hub.PROJECTION).exists()), None)
    if path is None:
        return None
    if "weight" not in read_header(path):
        raise CheckpointError(f"{path} has no tensor 'weight' of shape (projected size, hidden size).")
    arrays: Any = mx.load(str(path))
    projection = nn.Linear(1, 1, bias="bias" in arrays)
    projection.update({name: arrays[name].astype(mx.float32) for name in projection.parameters()})
    return projection


def _parameters(model: nn.Module) -> list[tuple[str, mx.array]]:
    return tree_flatten(model.parameters())  # type: ignore[return-value] # its other form is a dictionary


def _damaged_tensor(model: nn.Module, folder: Path) -> NonFiniteError | None:
    for name, value in _parameters(model):
        if mx.issubdtype(value.dtype, mx.floating) and not mx.all(mx.isfinite(value)).item():
            return NonFiniteError(
                f"The weights in {folder} are damaged: {name} holds NaN or infinity. "
                "Download or convert the model again."
            )
    return None
