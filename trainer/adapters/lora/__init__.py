"""LoRA: low-rank matrices beside linear layers and convolutions (Hu et al. 2021; LoRA-C3Lier for convolutions)."""
