"""A run as one HTML file that opens anywhere. Its door is `page`."""
