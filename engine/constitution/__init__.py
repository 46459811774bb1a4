"""Principles and few-shot examples, from caiflow's own format or from others'. Its door is `load`."""
