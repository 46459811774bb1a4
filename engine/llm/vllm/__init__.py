"""The engine on vLLM, with this project's own seeded draws."""
