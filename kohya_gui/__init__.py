"""The form and the window. It reads declarations and snapshots, and knows nothing about training."""
