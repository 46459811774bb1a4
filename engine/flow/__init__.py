"""Rows on their way through chains of steps, against engines and the ledger. Its door is `stream`."""
