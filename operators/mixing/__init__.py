"""`mix` and what it carries out: drawing from sources, folding conversations, the order of what comes out."""
