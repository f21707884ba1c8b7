"""How good a model is, and what quantising or tuning cost it."""
