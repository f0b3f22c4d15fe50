"""Methods against noisy labels, one a file. A new one is imported and named here, and is found by
YAML, tests and README.

Each scores samples, ``loss(output, target, index) -> losses [B]``, or, an Objective such as
MixMatch, runs the model itself; losses.base says what that promises.
"""

from losses.data_parameters import DataParameters
from losses.discrimloss import DiscrimLoss
from losses.forward_correction import ForwardCorrection
from losses.gce import GCE
from losses.gradient_rescaling import GradientRescaling
from losses.mentornet import MentorNet
from losses.mixmatch import MixMatch
from losses.plain import Plain
from losses.superloss import SuperLoss

__all__ = [
    "Plain",
    "DiscrimLoss",
    "SuperLoss",
    "DataParameters",
    "GradientRescaling",
    "GCE",
    "MixMatch",
    "MentorNet",
    "ForwardCorrection",
]
