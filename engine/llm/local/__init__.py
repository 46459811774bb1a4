"""The engine on transformers: batches that grow and shrink, and the cache of keys and values they share."""
