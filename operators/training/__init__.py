"""Losses, rollouts and scores that the training operators add to TRL's trainers."""
