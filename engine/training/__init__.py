"""What the training operators share: parameters, loading and saving models, tokenising rows, one training loop with resume."""
