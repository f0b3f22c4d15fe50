"""Backbones: functions that return a module from images [B, in_channels, H, W] to output [B, num_outputs].

A new one is imported and named here, and is found by YAML and tests. Its signature is the schema of its YAML section:
`num_outputs`, and `in_channels` and `image_size` (height = width) where it has them, come from the dataset, the rest from YAML.
"""

from models.cnn import cnn
from models.lenet import lenet
from models.mlp import mlp
from models.preact_resnet18 import preact_resnet18
from models.resnet import resnet18, resnet34
from models.resnet50 import resnet50
from models.wide_resnet import wide_resnet, wide_resnet28_2, wide_resnet28_10

__all__ = ["cnn", "lenet", "mlp", "preact_resnet18", "resnet18", "resnet34", "resnet50", "wide_resnet", "wide_resnet28_10",
           "wide_resnet28_2"]
