"""What every part of the page is made of: HTML, charts, wiring, and which files it may touch."""
