"""Turns Hugging Face checkpoints into quantised MLX folders; installed and imported as ``grit_mlx.convert``."""
