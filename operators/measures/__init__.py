"""The arithmetic of figures: intervals, probabilities, and their pictures."""
