"""How weights are trained: optimizers, each a torch.optim.Optimizer."""
