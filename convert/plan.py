"""What a conversion will write, decided before the first weight is read.

Everything follows from ``config.json``, the headers of the weight files and the recipe: each parameter, what it is
made of, how it is quantised, and so every byte of the output's layout. That makes it possible to refuse what cannot
work before any work, to write in order without holding anything, and to resume after an interruption.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.convert.layout import Layout, lay_out, parameters
from grit_mlx.convert.options import MODES
from grit_mlx.convert.quantization import Quantization
from grit_mlx.convert.reading import Source
from grit_mlx.errors import ArchitectureError, CheckpointError, ConfigError
from grit_mlx.model.checkpoint import Tensor, read_config
from grit_mlx.model.device import DTYPES
from grit_mlx.model.foreign import has_head
from grit_mlx.model.loading import config_fixes, load_error, refuse_code

__all__ = ["ConversionPlan", "Weight", "build_model", "make_plan"]


@dataclass(frozen=True)
class Weight:
    """One parameter: what it is made of and how it is written.

    Attributes:
        name: such as ``"model.layers.0.mlp.up_proj.weight"``.
        shape: unpacked.
        dtype: in which it is written, or quantised from.
        packed: how the source quantises it; None if it does not.
        quantization: how the output does; None if it does not.
    """

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    packed: Quantization | None
    quantization: Quantization | None

    @property
    def module(self) -> str:
        """The path of the module that it belongs to."""
        return self.name.rpartition(".")[0]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """Product of all axes but the last."""
        rows = 1
        for size in self.shape[:-1]:
            rows *= size
        return rows

    def written(self) -> dict[str, tuple[tuple[int, ...], mx.Dtype]]:
        """Names, shapes and dtypes of the tensors that it becomes."""
        if self.quantization is None:
            return {self.name: (self.shape, self.dtype)}
        lazy = self.quantization.quantize(mx.zeros(self.shape, self.dtype))  # shapes only, nothing is computed
        names = ("weight", "scales", "biases")
        return {
            f"{self.module}.{name}": (tuple(array.shape), array.dtype) for name, array in zip(names, lazy, strict=False)
        }


@dataclass(frozen=True)
class ConversionPlan:
    """A complete conversion.

    Attributes:
        weights: in the order in which they are written.
        layout: what they are made of.
        config: of mlx-lm's model, unquantised.
        projection: stored names of the ``weight`` and ``bias`` of a projection head in the checkpoint; may be empty.
        headless: whether the checkpoint has no language-model head, so that the result only embeds.
    """

    weights: tuple[Weight, ...]
    layout: Layout
    config: dict[str, Any]
    projection: Mapping[str, str] = field(default_factory=dict)
    headless: bool = False

    @property
    def parameters(self) -> int:
        """Numbers in the model, unpacked."""
        return sum(weight.rows * weight.width for weight in self.weights)

    def quantized(self, chosen: Mapping[str, Quantization]) -> ConversionPlan:
        """The same conversion with these modules quantised, by their paths, and no others."""
        weights = [
            replace(weight, quantization=chosen.get(weight.module) if weight.name.endswith(".weight") else None)
            for weight in self.weights
        ]
        return replace(self, weights=tuple(weights))

    def output_config(self) -> dict[str, Any]:
        """``config.json`` as mlx-lm's loader and server read it: a default for all, and each module that differs."""
        output = dict(self.config)
        used = {one.module: one.quantization for one in self.weights if one.quantization is not None}
        if used:
            default = Counter(used.values()).most_common(1)[0][0]
            others = {module: one.as_config() for module, one in used.items() if one != default}
            output["quantization"] = output["quantization_config"] = {**default.as_config(), **others}
        return dict(sorted(output.items()))


def build_model(config: Mapping[str, Any], folder: Path, *, trust: bool = False) -> nn.Module:
    """mlx-lm's model for a mended config, unquantised, with weights that are not computed.

    Raises:
        ArchitectureError: mlx-lm does not know it, or it brings code that is not trusted.
        ConfigError: the config lacks something.
    """
    from mlx_lm.utils import _get_classes

    if not trust:
        refuse_code(config, folder)
    code = config.get("model_file")
    try:
        classes = _get_classes(dict(config)) if code is None else _classes_in(folder / code)
        model: nn.Module = classes[0](classes[1].from_dict(dict(config)))
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise load_error(error, folder, config) from error
    return model


def _classes_in(path: Path) -> tuple[Any, Any]:
    """The model and its arguments that a checkpoint's own code defines; it is run."""
    spec = importlib.util.spec_from_file_location("custom_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ArchitectureError(f"There is no {path}, which config.json names as the model's code.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Model, module.ModelArgs


def make_plan(
    source: Source, *, dtype: str | None = None, dequantize: bool = False, trust: bool = False
) -> tuple[ConversionPlan, nn.Module]:
    """Plan a conversion that keeps the quantisation of the source, and build its model, unquantised.

    Args:
        source: a checkpoint, of which ``config.json`` and the headers are read.
        dtype: of the weights that are not packed: one of ``DTYPES``; None for what the config says, else as stored.
        dequantize: unpack weights that the source has quantised.
        trust: run Python code that comes with the model.

    Raises:
        ModelError: of a kind that says what is wrong; the first tensor at fault is named.
    """
    stored_config = read_config(source.folder)
    _refuse_foreign_quantization(stored_config, source.folder)
    # An official training checkpoint holds its projection head among the weights.
    projection = {f"projection.{leaf}": leaf for leaf in ("weight", "bias")}
    tensors = {name: tensor for name, tensor in source.tensors.items() if name not in projection}
    config, headless = _mended(stored_config, tensors)
    model = build_model(config, source.folder, trust=trust)
    layout = lay_out(model, tensors)
    packed = _packed(model, layout, config)
    _check(model, layout, packed, tensors, source.place)
    target = _dtype(dtype, config)
    weights = tuple(
        _weight(model, layout, name, tuple(array.shape), packed, dequantize=dequantize, dtype=target)
        for name, array in parameters(model).items()
    )
    head = {leaf: name for name, leaf in projection.items() if name in source.tensors}
    return ConversionPlan(weights, layout, _unquantized_config(config, target), head, headless), model


def _weight(
    model: nn.Module,
    layout: Layout,
    name: str,
    shape: tuple[int, ...],
    packed: Mapping[str, Quantization],
    *,
    dequantize: bool,
    dtype: mx.Dtype | None,
) -> Weight:
    module, _, leaf = name.rpartition(".")
    quantization = packed.get(module) if leaf == "weight" else None
    stored = layout.origins[name if quantization is None else f"{module}.scales"].dtype
    if stored == mx.uint8:  # the scales of 4- and 8-bit floats; mlx computes with them in bfloat16
        stored = mx.bfloat16
    may_cast = getattr(model, "cast_predicate", lambda name: True)
    if dtype is not None and may_cast(name) and mx.issubdtype(stored, mx.floating):
        stored = dtype
    return Weight(name, shape, stored, quantization, None if dequantize else quantization)


def _dtype(dtype: str | None, config: Mapping[str, Any]) -> mx.Dtype | None:
    """As mlx-lm chooses it: what is asked for, else what the config says; None to keep what is stored."""
    text = config.get("text_config") or {}
    return DTYPES.get(str(dtype or config.get("torch_dtype") or config.get("dtype") or text.get("dtype")))


def _mended(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], bool]:
    """The config that mlx-lm reads rightly, and whether the checkpoint is a base model without a head."""
    mended = {**config, **config_fixes(config, tensors)}
    headless = not has_head(tensors) and mended.get("tie_word_embeddings") is False
    if headless:
        mended["tie_word_embeddings"] = True
    return mended, headless


def _refuse_foreign_quantization(config: Mapping[str, Any], folder: Path) -> None:
    table = config.get("quantization_config") or config.get("compression_config") or {}
    if not isinstance(table, Mapping) or "quantization" in config:
        return
    method = table.get("quant_method") or next((name for name in _FOREIGN if name in str(table).lower()), None)
    if method:
        known = _FOREIGN.get(str(method).lower(), str(method))
        raise ConfigError(
            f"{folder} is quantised with {known}, which cannot be converted. Use the unquantised original"
            f"{_original(config)}."
        )


# Other tools' quantisation, by the name that they have in config.json.
_FOREIGN = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "bitsandbytes": "bitsandbytes",
    "fp8": "fp8 (8-bit floats of a GPU)",
    "fbgemm_fp8": "fp8 (8-bit floats of a GPU)",
    "compressed-tensors": "compressed-tensors (llm-compressor)",
    "aqlm": "AQLM",
    "hqq": "HQQ",
    "eetq": "EETQ",
    "quanto": "quanto",
    "mxfp4": "mxfp4 as transformers stores it",
    "torchao": "torchao",
    "modelopt": "ModelOpt",
}


def _original(config: Mapping[str, Any]) -> str:
    """Where the unquantised model may be, if the config says so."""
    name = config.get("_name_or_path")
    return f"; its config.json names {name}" if isinstance(name, str) and name else ""


def _packed(model: nn.Module, layout: Layout, config: Mapping[str, Any]) -> dict[str, Quantization]:
    """How the source quantises which modules, read off its shapes as mlx-lm does it."""
    packed = {}
    table = config.get("quantization") or {}
    for path, module in model.named_modules():
        scales = layout.origins.get(f"{path}.scales")
        weight = layout.origins.get(f"{path}.weight")
        if scales is None or weight is None or not hasattr(module, "to_quantized"):
            continue
        width = module.weight.shape[-1]
        own = table.get(path)
        mode = (own if isinstance(own, Mapping) else table).get("mode", "affine")
        group_size, bits = width // max(1, scales.shape[-1]), weight.shape[-1] * 32 // width
        if mode not in MODES or bits not in MODES[mode][0] or group_size not in MODES[mode][1]:
            raise CheckpointError(
                f"{path} is quantised in a way that mlx does not know: {bits} bits in groups of {group_size}, {mode}. "
                "Use the unquantised original."
            )
        packed[path] = Quantization(bits, group_size, mode)
    return packed


def _check(
    model: nn.Module,
    layout: Layout,
    packed: Mapping[str, Quantization],
    tensors: Mapping[str, Tensor],
    place: Path,
) -> None:
    """Every expected tensor there, nothing left over, every shape right; the first offender is named.

    Raises:
        CheckpointError: otherwise.
    """
    advice = "Download the model again, or fix config.json."
    expected = {name: tuple(array.shape) for name, array in parameters(model).items()}
    for path, quantization in packed.items():
        lazy = quantization.quantize(mx.zeros(expected[f"{path}.weight"], mx.float32))
        for leaf, array in zip(("weight", "scales", "biases"), lazy, strict=False):
            expected[f"{path}.{leaf}"] = tuple(array.shape)
    origins = layout.origins
    missing = [name for name in expected if name not in origins]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"The weights in {place} lack {missing[0]}{more}, which config.json asks for. {advice}")
    for name, origin in origins.items():
        of = origin.tensors[0] if origin.tensors else name
        file = f" in {tensors[of].file.name}" if of in tensors else ""
        if name not in expected:
            raise CheckpointError(
                f"{of}{file} of {place} belongs to no part of the model that config.json describes. {advice}"
            )
        if origin.shape != expected[name]:
            raise CheckpointError(
                f"{of}{file} of {place} has shape {origin.shape} and config.json asks for {expected[name]}"
                f"{'' if of == name else f' ({name})'}. {advice}"
            )
        for tensor in origin.tensors:
            if tensors[tensor].shape != tensors[of].shape or tensors[tensor].dtype != tensors[of].dtype:
                raise CheckpointError(
                    f"{tensor} in {tensors[tensor].file.name} of {place} has shape {tensors[tensor].shape} and type "
                    f"{tensors[tensor].dtype}; {of} has {tensors[of].shape} and {tensors[of].dtype}. {advice}"
                )


def _unquantized_config(config: Mapping[str, Any], dtype: mx.Dtype | None) -> dict[str, Any]:
    without = ("quantization", "quantization_config", "_name_or_path")
    output = {key: value for key, value in config.items() if key not in without}
    if dtype is not None:
        key = "dtype" if "dtype" in output and "torch_dtype" not in output else "torch_dtype"
        output[key] = next(name for name, known in DTYPES.items() if known == dtype)
    return output
