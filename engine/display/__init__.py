"""What a run shows on the screen and prints at its end. Its door is `progress`."""
