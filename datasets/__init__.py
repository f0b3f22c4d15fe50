"""Datasets, one function each.

A new one is imported and named here; datasets.base says what it returns.
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
