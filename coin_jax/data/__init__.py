"""Where training text comes from: rows and templates, pairs, tokens, packed batches."""
