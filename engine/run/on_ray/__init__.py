"""A run on Ray: its processes and nodes, what is said between them, and what becomes of those that are lost."""
