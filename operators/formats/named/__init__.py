"""The formats themselves: how each is recognised and read. Never reads files."""
