"""What `grade` and `evaluate` share: how a model is asked about one answer, and how its reply becomes a number."""
