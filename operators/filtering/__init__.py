"""`filter` and what it carries out: rules, expressions and the sieve that applies them."""
