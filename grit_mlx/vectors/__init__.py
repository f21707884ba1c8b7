"""Vectors: precisions, search, rankings, files."""
