"""OFT: the outputs of a layer are turned, in blocks (Qiu et al. 2023; LyCORIS' diag-oft)."""
