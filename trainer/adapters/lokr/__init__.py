"""LoKr: the Kronecker product of a small matrix and a larger, factored one (KronA, Edalati et al. 2022; LyCORIS)."""
