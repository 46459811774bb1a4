"""Which caiflow this is: the code's own word, which an editable install of other code can't contradict."""

VERSION = "0.1.0"
"""As pyproject.toml, the schema, locks and runs have it."""
