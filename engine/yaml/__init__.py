"""YAML as it is written: every value with its place in the file. Its door is `reader`."""
