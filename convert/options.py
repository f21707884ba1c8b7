"""What a conversion makes. One table; see ``grit_mlx.options``. Nothing here imports mlx."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from grit_mlx.errors import ArgumentError, Option
from grit_mlx.options import bytes_of_size, check, option

__all__ = ["DTYPES", "MODES", "RECIPES", "ConversionOptions"]

# What mlx's kernels know: bits and group sizes of each mode, the first of each being the default.
MODES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "nvfp4": ((4,), (16,)),
    "mxfp8": ((8,), (32,)),
}

# See ``quantization``; the first is the default.
RECIPES = ("grit", "uniform", "mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")

DTYPES = ("stored", "float16", "bfloat16", "float32")

_IMPLY_QUANTIZE = ("bits", "group_size", "mode", "recipe", "target_bits", "fit_bytes")


@dataclass(frozen=True)
class ConversionOptions:
    """What a conversion makes, and where; the defaults copy the weights as they are.

    Any of ``bits`` to ``fit_bytes`` implies ``quantize``.

    Attributes:
        recipe: one of ``RECIPES``; in Python also a function from mlx-lm's model and a ``Quantization``, the one asked
            for, to a ``quantization.Predicate``.
        texts: to measure and compare with; None for built-in ones.
        shard_bytes: maximum number of bytes of a file's tensors. An interruption loses at most that much work.

    Raises:
        ArgumentError: a value out of range, or two that do not go together.
    """

    heading: ClassVar[str] = "Quantising"

    output: str | Path | None = option(
        None,
        "Folder to make. Default: the model's name with -4bit or the like, in the current folder.",
        flags=("--output", "-o", "--mlx-path"),
        metavar="FOLDER",
        heading="Output",
    )
    quantize: bool = option(False, "Quantise; implied by the next six options.", flags=("--quantize", "-q"))
    bits: int | None = option(None, "Bits of most weights. Default: 4.", flags=("--q-bits",))
    group_size: int | None = option(
        None,
        "Number of weights that share a scale. Default: 64; 32 for mxfp4 and mxfp8, 16 for nvfp4.",
        flags=("--q-group-size",),
    )
    mode: str | None = option(None, "Quantisation mode. Default: affine.", choices=tuple(MODES), flags=("--q-mode",))
    recipe: str | Callable[..., Any] | None = option(
        None,
        "Which weights get more bits: grit (default: token tables, keys and values; routers are not quantised), "
        "uniform (mlx-lm's default), or mlx-lm's mixed_2_6, mixed_3_4, mixed_3_6, mixed_4_6.",
        choices=RECIPES,
        flags=("--quant-predicate",),
        metavar="RECIPE",
    )
    target_bits: float | None = option(
        None,
        "Choose the bits of each module by its measured effect, for this many bits per weight on average, scales "
        "included.",
        above=0,
        flags=("--q-target-bits",),
    )
    fit_bytes: int | None = option(
        None,
        "The same, for a machine with this much memory, such as 16GB.",
        minimum=1,
        flags=("--fit",),
        metavar="SIZE",
        parse=bytes_of_size,
    )
    dequantize: bool = option(False, "Dequantise a quantised model.", flags=("--dequantize", "-d"))
    dtype: str | None = option(
        None,
        "Precision of weights that are not quantised. Default: what config.json says, else as stored.",
        choices=DTYPES,
        heading="Output",
    )
    force: bool = option(False, "Replace an existing model.", heading="Output")
    upload_repo: str | None = option(None, "Hub repository to upload the model to.", metavar="NAME", heading="Output")
    shard_bytes: int = option(1 << 30, "Maximum size of a file of weights.", minimum=1, flags=None, parse=bytes_of_size)
    verify: bool | None = option(
        None,
        "Embed and continue the same texts with source and result: all of them. Default: fewer if they take long.",
        heading="Proof",
    )
    texts: tuple[str, ...] | None = option(None, "Texts to measure and compare with.", flags=None)

    def __post_init__(self) -> None:
        check(self)
        if any(getattr(self, name) is not None for name in _IMPLY_QUANTIZE):
            object.__setattr__(self, "quantize", True)
        if self.quantize and self.dequantize:
            raise ArgumentError("Choose one of ", Option("quantize"), " and ", Option("dequantize"), ".")
        mode = self.mode or "affine"
        for name, known in zip(("bits", "group_size"), MODES[mode], strict=True):
            if (value := getattr(self, name)) is not None and value not in known:
                numbers = ", ".join(map(str, sorted(known)))
                raise ArgumentError(f"Mode {mode} has no ", Option(name), f" {value}: use {numbers}.")
        if self.measured and mode != "affine":
            raise ArgumentError(f"Bits can be chosen module by module in mode affine only, not in {mode}.")
        if self.target_bits is not None and self.fit_bytes is not None:
            raise ArgumentError("Choose one of ", Option("target_bits"), " and ", Option("fit_bytes"), ".")

    @property
    def measured(self) -> bool:
        """Whether bits are chosen by measuring the model, not by a recipe."""
        return self.target_bits is not None or self.fit_bytes is not None
