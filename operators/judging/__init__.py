"""What judge and the judging measures of evaluate share: prompts, options, orders, preferences, verdicts."""
