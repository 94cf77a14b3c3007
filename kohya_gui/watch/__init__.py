"""The run and the runs before it, as they are seen."""
