"""Several processes that train one model: each with all its weights and its part of the rows, or with a share of both."""
