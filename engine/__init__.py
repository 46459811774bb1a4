"""From a spec to its result: specs, plans, runs, rows, engines and the store. Knows no operator by name."""
