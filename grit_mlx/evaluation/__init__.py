"""How good vectors and answers are: what quantising changes, and scores on labelled data."""
