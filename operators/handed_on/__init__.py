"""What steps made in the form that other tools take it in, as `export --as` writes it."""
