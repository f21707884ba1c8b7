"""GRIT's data: the rows that training and evaluation read, and their tokens."""
