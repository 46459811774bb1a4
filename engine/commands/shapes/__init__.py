"""What each command prints with `--json`: declarations, of which the page on it is made and by which outputs are tested.

Never used to make an output: commands don't import this. Versions are in `parser.SHAPES`.
"""
