"""LoCon: a LoRA with LyCORIS' options: DoRA, a core for convolutions (Tucker's form), a learned number."""
