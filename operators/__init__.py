"""The built-in operators: one file each, and a wing for what several files carry out. No operator imports another."""
