"""What answers to prompts of a purpose amount to: published suites, each graded in its own way."""
