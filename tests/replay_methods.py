"""METHODS: functions that make a method for its numeric traces, of all modules in replay/."""

import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for who loads this file by its path

import tests.replay

METHODS = {}
for module in pkgutil.iter_modules(tests.replay.__path__, "tests.replay."):
    METHODS |= importlib.import_module(module.name).METHODS
