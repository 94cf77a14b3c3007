"""The page as a whole: the server, the guard before it, the look, and the tabs."""
