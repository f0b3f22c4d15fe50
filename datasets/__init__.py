"""Datasets, one function each. A new one is imported and named here; datasets.base says what it returns."""

from datasets.cifar import cifar10, cifar100
from datasets.csv_file import csv
from datasets.digits import digits
from datasets.folder import folder
from datasets.mnist import mnist

__all__ = ["digits", "mnist", "cifar10", "cifar100", "folder", "csv"]
