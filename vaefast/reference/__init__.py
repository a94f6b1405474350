"""The mathematics of every op, in differentiable pure PyTorch: the truth that the other backends are tested against."""
