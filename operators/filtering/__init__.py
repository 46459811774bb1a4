"""What filter carries out: rules, expressions and the sieve that applies them."""
