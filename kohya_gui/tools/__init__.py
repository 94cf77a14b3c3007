"""The tools in the page: their forms, made from their declarations, and the one that is at work."""
