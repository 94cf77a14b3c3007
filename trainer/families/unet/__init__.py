"""What the families made from Stable Diffusion share: latent UNets with CLIP text encoders. No torch here."""
