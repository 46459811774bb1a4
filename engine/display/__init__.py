"""What a run shows on the screen, prints at its end and tells trackers. Its door is `progress`."""
