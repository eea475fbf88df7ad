"""Plans: one format per layer; reading, writing, counting and applying them."""
