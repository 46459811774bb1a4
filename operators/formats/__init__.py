"""File formats that data sets of dialogues come in: reading their records and turning each into caiflow's columns.

One module per idea; `load` is the only user. Nothing here imports pyarrow, polars or the hub's libraries before it must, so
that a spec that names a text file is checked in milliseconds.
"""

SUITE = "suite:"
"""What is before the name of a published suite."""
