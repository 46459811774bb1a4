"""Rows on disk: their columns, types and parts. Its door is `folder`."""

import os

# Arrow's allocator, mimalloc, would keep what each thread has freed: up to a third of the memory of `mix`. It reads this once
os.environ.setdefault("MIMALLOC_PURGE_DELAY", "0")
