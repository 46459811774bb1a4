"""What most records are, read and kept at the speed of compiled code: texts, flags and numbers. Never knows a format."""
