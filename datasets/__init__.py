"""Datasets, one function each.

A new one is imported and named here; datasets.base says what it returns. The ranges of numbers in
a params file are below.
"""

from datasets.cifar import cifar10, cifar100
from datasets.clothing1m import clothing1m
from datasets.csv_file import csv
from datasets.digits import digits
from datasets.digitsum import digitsum
from datasets.folder import folder
from datasets.mnist import mnist
from datasets.text import text
from datasets.utkface import utkface
from datasets.webvision import webvision
from datasets.wikihow import wikihow
from utils.build import AT_LEAST_0, AT_LEAST_1, SEED, Must

__all__ = [
    "digits",
    "mnist",
    "cifar10",
    "cifar100",
    "folder",
    "csv",
    "digitsum",
    "utkface",
    "clothing1m",
    "webvision",
    "text",
    "wikihow",
]

IN_PIXELS = Must("lie in [1, 10000]", lambda value: 1 <= value <= 10_000)
RANGES = {  # of the arguments of all datasets, by name
    "crop_padding": [Must("lie in [0, 1000]", lambda value: 0 <= value <= 1000)],
    "crop_scale": [Must("lie in (0, 1]", lambda value: 0 < value <= 1)],
    "generator_seed": [SEED],
    "image_size": [IN_PIXELS],
    "max_length": [AT_LEAST_1],
    "memory_limit": [AT_LEAST_0],
    "num_classes": [AT_LEAST_1],
    "num_workers": [AT_LEAST_0],
    "per_class": [AT_LEAST_1],
    "split_seed": [SEED],
    "std": [Must("be greater than 0 each", lambda values: all(value > 0 for value in values))],
    "test_fraction": [Must("lie in [0, 1)", lambda value: 0 <= value < 1)],
    "validation_fraction": [Must("lie in [0, 1)", lambda value: 0 <= value < 1)],
}
