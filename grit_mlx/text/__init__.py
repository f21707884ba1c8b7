"""Files to texts: which files, how they are read, and where they are split."""
