"""Engines: a loaded model as a loop that takes requests and gives answers. Its doors are `load` and `client`."""
