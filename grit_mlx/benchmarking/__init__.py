"""How fast this machine runs a model: ``grit bench``."""
