"""Whose calls an engine is given first, so that what rows have read stays at hand."""
