"""What a run would be, before anything heavy is loaded. Torch-free."""
