"""Answers drawn more than once: until checks accept them."""
