"""What families share whose denoiser is a transformer beside text encoders and a VAE, each in files of its own."""
