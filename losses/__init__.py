"""Methods against noisy labels, one per file.

A new method is imported and named here: YAML, tests and README then know it. It is a SampleLoss,
``loss(output, target, index) -> losses [B]``, or, if it runs the model itself as MixMatch does, an
Objective. losses.base says what each of the two promises.

Installed by itself, the package is called ``discrimloss``: so its files import one another
relatively, and of others PyTorch alone.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cleannet import CleanNet as CleanNet
    from .co_teaching import CoTeaching as CoTeaching
    from .co_teaching_plus import CoTeachingPlus as CoTeachingPlus
    from .data_parameters import DataParameters as DataParameters
    from .decoupling import Decoupling as Decoupling
    from .discrimloss import DiscrimLoss as DiscrimLoss
    from .distillation import Distillation as Distillation
    from .distillation import Teacher as Teacher
    from .forward_correction import ForwardCorrection as ForwardCorrection
    from .gce import GCE as GCE
    from .gradient_rescaling import GradientRescaling as GradientRescaling
    from .jocor import JoCoR as JoCoR
    from .joint_optimization import JointOptimization as JointOptimization
    from .label_cleaning import LabelCleaning as LabelCleaning
    from .learning_to_reweight import LearningToReweight as LearningToReweight
    from .mentornet import MentorNet as MentorNet
    from .mixmatch import MixMatch as MixMatch
    from .noisy_clean_crf import NoisyCleanCRF as NoisyCleanCRF
    from .plain import Plain as Plain
    from .selfie import SELFIE as SELFIE
    from .superloss import SuperLoss as SuperLoss
    from .two_stage import TwoStage as TwoStage

__version__ = "0.1.0"

# The file of each. It is imported when its method is first named: whoever needs nothing but
# .errors, which stands below commands that only read files, does not wait for PyTorch.
FILES = {
    "Plain": "plain",
    "DiscrimLoss": "discrimloss",
    "SuperLoss": "superloss",
    "DataParameters": "data_parameters",
    "GradientRescaling": "gradient_rescaling",
    "GCE": "gce",
    "MixMatch": "mixmatch",
    "MentorNet": "mentornet",
    "ForwardCorrection": "forward_correction",
    "CoTeaching": "co_teaching",
    "CoTeachingPlus": "co_teaching_plus",
    "JoCoR": "jocor",
    "Decoupling": "decoupling",
    "SELFIE": "selfie",
    "JointOptimization": "joint_optimization",
    "TwoStage": "two_stage",
    "LearningToReweight": "learning_to_reweight",
    "LabelCleaning": "label_cleaning",
    "Teacher": "distillation",
    "Distillation": "distillation",
    "NoisyCleanCRF": "noisy_clean_crf",
    "CleanNet": "cleannet",
}
__all__ = list(FILES)


def __getattr__(name: str):
    if name not in FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    method = getattr(importlib.import_module(f".{FILES[name]}", __name__), name)
    globals()[name] = method  # so that this is called once
    return method


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
