"""(IA)^3: channels are multiplied by numbers that are learned (Liu et al. 2022)."""
