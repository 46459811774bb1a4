"""Jinja templates under a bound: what any of them may ask, and how chat templates are laid out."""
