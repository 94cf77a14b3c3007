"""LoHa: the element-wise product of two low-rank matrices is added to a weight (FedPara, Hyeon-Woo et al. 2021)."""
