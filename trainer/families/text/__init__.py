"""From captions to what text encoders take."""
