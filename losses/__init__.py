"""Methods against noisy labels, one per file.

A new method is imported and named here: YAML, tests and README then know it. It is a SampleLoss,
``loss(output, target, index) -> losses [B]``, or, if it runs the model itself as MixMatch does, an
Objective. losses.base says what each of the two promises.
"""

from losses.cleannet import CleanNet
from losses.co_teaching import CoTeaching
from losses.co_teaching_plus import CoTeachingPlus
from losses.data_parameters import DataParameters
from losses.decoupling import Decoupling
from losses.discrimloss import DiscrimLoss
from losses.distillation import Distillation, Teacher
from losses.forward_correction import ForwardCorrection
from losses.gce import GCE
from losses.gradient_rescaling import GradientRescaling
from losses.jocor import JoCoR
from losses.joint_optimization import JointOptimization
from losses.label_cleaning import LabelCleaning
from losses.learning_to_reweight import LearningToReweight
from losses.mentornet import MentorNet
from losses.mixmatch import MixMatch
from losses.noisy_clean_crf import NoisyCleanCRF
from losses.plain import Plain
from losses.selfie import SELFIE
from losses.superloss import SuperLoss
from losses.two_stage import TwoStage

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
    "CoTeaching",
    "CoTeachingPlus",
    "JoCoR",
    "Decoupling",
    "SELFIE",
    "JointOptimization",
    "TwoStage",
    "LearningToReweight",
    "LabelCleaning",
    "Teacher",
    "Distillation",
    "NoisyCleanCRF",
    "CleanNet",
]
