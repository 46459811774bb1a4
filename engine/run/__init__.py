"""Carrying out a plan on Ray: units of work, engines, processes. Its door is `runner`."""
