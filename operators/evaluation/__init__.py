"""The parts of `evaluate`, one idea each; the operator puts them together."""
