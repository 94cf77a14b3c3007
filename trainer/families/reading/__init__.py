"""Model files as people have them: their headers, pickles, weights, and what lies on the hub. Mostly torch-free."""
