"""Whether a run is good: the loss at fixed noise, on what, when, at what price, and what follows from it in words."""
