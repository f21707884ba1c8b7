"""Turns Hugging Face checkpoints into quantised MLX folders; installed and imported as ``grit_mlx.convert``.

``convert`` does it all; ``verify`` compares two models.
"""

from grit_mlx.convert.conversion import Options, Report, Step, convert
from grit_mlx.convert.verification import verify

__all__ = ["Options", "Report", "Step", "convert", "verify"]
