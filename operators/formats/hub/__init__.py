"""Data sets on the hub: which files a split is made of, fetched through the hub's own cache, and their rows."""
