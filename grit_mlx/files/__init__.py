"""Files and folders that are complete or absent, and locks on them."""
