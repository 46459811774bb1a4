"""Rows on disk: their columns, types and parts. Its door is `folder`."""
