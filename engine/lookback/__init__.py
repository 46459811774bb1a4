"""Finished runs: finding, comparing, verifying and handing them on. Its door is `history`."""
