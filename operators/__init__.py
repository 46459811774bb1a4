"""The built-in operators: a file each, in a wing where several files carry it out. No operator imports another."""
