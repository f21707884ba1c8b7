"""The ``grit`` command, one file per subcommand; installed and imported as ``grit_mlx.cli``."""
