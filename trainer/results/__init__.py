"""What a run leaves: LoRA files with their metadata, the run's folder with its events, and who reads them."""
