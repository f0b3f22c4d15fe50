"""Backbones: functions that return a module from inputs [B, ...] to outputs [B, num_outputs].

A new backbone is imported and named here: YAML and tests then know it. The signature of the
function is the schema of its YAML section. ``num_outputs``, ``in_channels`` and ``image_size``
(height = width) come from the dataset if the function asks for them, everything else from YAML.
models.several makes one module of several networks, for methods that train more than one.
"""

from models.cnn import cnn
from models.cnn9 import cnn9
from models.digitsum_lstm import digitsum_lstm
from models.efficientnet_lite0 import efficientnet_lite0
from models.imagenet_resnet import imagenet_resnet18, resnet50
from models.lenet import lenet
from models.mlp import mlp
from models.preact_resnet18 import preact_resnet18
from models.resnet import resnet18, resnet34
from models.resnet20 import resnet20
from models.text_encoder import text_encoder
from models.wide_resnet import wide_resnet, wide_resnet28_2, wide_resnet28_10

__all__ = [
    "cnn",
    "cnn9",
    "digitsum_lstm",
    "efficientnet_lite0",
    "imagenet_resnet18",
    "lenet",
    "mlp",
    "preact_resnet18",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "text_encoder",
    "wide_resnet",
    "wide_resnet28_10",
    "wide_resnet28_2",
]
