"""The engine behind an OpenAI-compatible endpoint: what is said, how fast, and what a refusal means."""
