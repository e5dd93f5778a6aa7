"""From an instruction collection to a contrastive training set."""
