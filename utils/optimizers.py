"""The optimisers that a params file may name: those of torch.optim that need no closure and no sparse gradients."""

from torch.optim import ASGD, SGD, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop

__all__ = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "ASGD"]
