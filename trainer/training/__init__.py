"""One training: its parts, wired by `build`; the loop; what a run leaves behind on its way, and its state."""
