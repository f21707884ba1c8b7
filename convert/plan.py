"""What a conversion will write, decided before the first weight is read.

Everything follows from ``config.json``, the headers of the weight files and the chosen recipe: each parameter, what
it is made of, how it is quantised, and so every byte of the output's layout. That makes it possible to refuse what
cannot work at once, to write in order without holding anything, and to go on after an interruption.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from grit_mlx.convert.layout import Layout, lay_out, parameters
from grit_mlx.convert.quantization import MODES, Quantization
from grit_mlx.errors import ArchitectureError, CheckpointError, ConfigError
from grit_mlx.model.checkpoint import Tensor
from grit_mlx.model.loading import explained, mended_config, refuse_code

__all__ = ["Plan", "Weight", "build_model", "make_plan", "split_projection"]

# safetensors' name of each dtype that is written.
NAMES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.uint8: "U8",
    mx.uint16: "U16",
    mx.uint64: "U64",
    mx.int8: "I8",
    mx.int16: "I16",
    mx.int32: "I32",
    mx.int64: "I64",
    mx.bool_: "BOOL",
}

Chooser = Callable[[nn.Module], Mapping[str, Quantization]]


@dataclass(frozen=True)
class Weight:
    """One parameter: what it is made of and how it is written.

    Attributes:
        name: such as ``"model.layers.0.mlp.up_proj.weight"``.
        shape: unpacked.
        dtype: in which it is written, or quantised from.
        packed: how the source quantises it; None where it does not.
        quantization: how the output does; None where it does not.
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
        """All axes but the last, as one."""
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
class Plan:
    """A whole conversion.

    Attributes:
        weights: in the order in which they are written.
        layout: what they are made of.
        config: the output's ``config.json``.
        dropped: stored tensors that the architecture leaves out.
        headless: whether the checkpoint has no language-model head, so that the result only embeds.
    """

    weights: tuple[Weight, ...]
    layout: Layout
    config: dict[str, Any]
    headless: bool

    @property
    def parameters(self) -> int:
        """Numbers in the model, unpacked."""
        return sum(weight.rows * weight.width for weight in self.weights)


def build_model(config: Mapping[str, Any], folder: Path, *, trust: bool = False) -> nn.Module:
    """mlx-lm's model for a mended config, unquantised, with weights that nothing has computed yet.

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
        raise explained(error, folder, config) from error
    return model


def _classes_in(path: Path) -> tuple[Any, Any]:
    """The model and its arguments that a checkpoint's own code defines; it is run."""
    spec = importlib.util.spec_from_file_location("custom_model", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ArchitectureError(f"There is no {path}, which config.json names as the model's code.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Model, module.ModelArgs


def split_projection(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Take the projection head out of an official training checkpoint.

    Returns:
        The other tensors, and the stored names of the head's ``weight`` and ``bias``, as far as there are any.
    """
    head = {name.rpartition(".")[2]: name for name in tensors if name in ("projection.weight", "projection.bias")}
    return {name: tensor for name, tensor in tensors.items() if name not in head.values()}, head


def make_plan(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    folder: Path,
    *,
    choose: Chooser | None = None,
    dtype: mx.Dtype | None = None,
    dequantize: bool = False,
    fused: bool = False,
    trust: bool = False,
) -> Plan:
    """Decide everything.

    Args:
        config: the contents of the source's ``config.json``.
        tensors: the source's headers, without a projection head.
        folder: the source's, for messages and for code that is trusted.
        choose: what to quantise how; None leaves weights as they are.
        dtype: of the numbers that are not packed; None keeps what is stored.
        dequantize: unpack weights that the source has quantised.
        fused: whether an adapter is added on the way.
        trust: run Python code that comes with the model.

    Raises:
        ModelError: of a kind that says what is wrong; the first tensor at fault is named.
    """
    _refuse_foreign_quantization(config, folder)
    config, headless = _mended(config, tensors)
    model = build_model(config, folder, trust=trust)
    layout = lay_out(model, tensors)
    packed = _packed(model, layout, config)
    _check(model, layout, packed, tensors, folder)
    chosen = {} if choose is None else dict(choose(model))
    kept = {} if dequantize or (choose is not None) else packed
    may_cast = getattr(model, "cast_predicate", lambda name: True)

    weights = []
    for name, skeleton in parameters(model).items():
        module, _, leaf = name.rpartition(".")
        origin = layout.origins[name]
        is_packed = leaf == "weight" and module in packed
        stored = layout.origins[f"{module}.scales"].dtype if is_packed else origin.dtype
        if stored == mx.uint8:  # the scales of 4- and 8-bit floats; mlx computes with them in bfloat16
            stored = mx.bfloat16
        cast = dtype is not None and may_cast(name) and mx.issubdtype(stored, mx.floating)
        weights.append(
            Weight(
                name=name,
                shape=tuple(skeleton.shape),
                dtype=dtype if cast and dtype is not None else stored,
                packed=packed.get(module) if is_packed else None,
                quantization=(chosen.get(module) or kept.get(module)) if leaf == "weight" else None,
            )
        )
    return Plan(tuple(weights), layout, _output_config(config, weights, dtype), headless)


def _mended(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], bool]:
    """The config that mlx-lm reads rightly, and whether the checkpoint is a base model without a head."""
    mended = {**config, **mended_config(config, tensors)}
    # A base model's names lack the first part; whether it has a head is then plain to see.
    headless = (
        any(name.startswith("layers.") for name in tensors)
        and not any("lm_head" in name for name in tensors)
        and not config.get("tie_word_embeddings", False)
    )
    if headless:
        mended["tie_word_embeddings"] = True
    return mended, headless


def _refuse_foreign_quantization(config: Mapping[str, Any], folder: Path) -> None:
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method and "quantization" not in config:
        raise ConfigError(
            f"{folder} is quantised with {method}, which cannot be converted. Use the unquantised original."
        )


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
    folder: Path,
) -> None:
    """Every expected tensor there, nothing left over, every shape right; the first offender is named.

    Raises:
        CheckpointError: otherwise.
    """
    advice = "Download the model again, or mend config.json."
    expected = {name: tuple(array.shape) for name, array in parameters(model).items()}
    for path, quantization in packed.items():
        lazy = quantization.quantize(mx.zeros(expected[f"{path}.weight"], mx.float32))
        for leaf, array in zip(("weight", "scales", "biases"), lazy, strict=False):
            expected[f"{path}.{leaf}"] = tuple(array.shape)
    origins = layout.origins
    missing = [name for name in expected if name not in origins]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"The weights in {folder} lack {missing[0]}{more}, which config.json asks for. {advice}")
    for name, origin in origins.items():
        of = origin.tensors[0] if origin.tensors else name
        place = f" in {tensors[of].file.name}" if of in tensors else ""
        if name not in expected:
            raise CheckpointError(
                f"{of}{place} of {folder} belongs to no part of the model that config.json describes. {advice}"
            )
        if origin.shape != expected[name]:
            raise CheckpointError(
                f"{of}{place} of {folder} has shape {origin.shape} and config.json asks for {expected[name]}"
                f"{'' if of == name else f' ({name})'}. {advice}"
            )
        for tensor in origin.tensors:
            if tensors[tensor].shape != tensors[of].shape or tensors[tensor].dtype != tensors[of].dtype:
                raise CheckpointError(
                    f"{tensor} in {tensors[tensor].file.name} of {folder} has shape {tensors[tensor].shape} and type "
                    f"{tensors[tensor].dtype}; {of} has {tensors[of].shape} and {tensors[of].dtype}. {advice}"
                )


def _output_config(config: Mapping[str, Any], weights: list[Weight], dtype: mx.Dtype | None) -> dict[str, Any]:
    """As mlx-lm's loader and server read it: a default for all, and each module that differs."""
    output = {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
    output.pop("_name_or_path", None)
    if dtype is not None:
        key = "dtype" if "dtype" in output and "torch_dtype" not in output else "torch_dtype"
        output[key] = {mx.float32: "float32", mx.float16: "float16", mx.bfloat16: "bfloat16"}[dtype]
    used = [weight.quantization for weight in weights if weight.quantization is not None]
    if used:
        default = max(dict.fromkeys(used), key=used.count)
        output["quantization"] = {
            **default.as_config(),
            **{
                weight.module: weight.quantization.as_config()
                for weight in weights
                if weight.quantization is not None and weight.quantization != default
            },
        }
        output["quantization_config"] = output["quantization"]
    return dict(sorted(output.items()))
