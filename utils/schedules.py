"""The learning-rate schedules that a params file may name: those of torch.optim that are stepped after each epoch."""

from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)

__all__ = ["MultiStepLR", "StepLR", "ExponentialLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts", "LinearLR",
           "PolynomialLR", "ConstantLR"]
