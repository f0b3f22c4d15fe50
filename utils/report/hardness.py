"""How runs do on the hardest test samples, and how much gradient is that of incorrect labels."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from utils.report.identity import KEY, data_of
from utils.report.run_files import read_arrays

HARD = 0.1  # the part of the test samples that count as hard


def add_mass(table: pd.DataFrame, epochs: pd.DataFrame) -> pd.DataFrame:
    """With the column mass_incorrect: the part of all gradient that incorrect labels have.

    It is the mean over all epochs, or what the table has already if the epochs are not there.
    """
    known = table.get("mass_incorrect", pd.Series(np.nan, table.index))
    if "mass_incorrect" not in epochs:
        return table.assign(mass_incorrect=known)
    means = epochs.groupby(KEY).mass_incorrect.mean()
    joined = table[KEY].join(means, on=KEY).mass_incorrect
    return table.drop(columns="mass_incorrect", errors="ignore").assign(
        mass_incorrect=joined.fillna(known)
    )


def add_hardness(
    table: pd.DataFrame,
    configs: dict[str, dict],
    directories: dict[tuple[str, int], Path],
    skipped: dict[str, str],
) -> pd.DataFrame:
    """With the column hard_test: the metric on the HARD part of the test samples.

    Hardest are those with the largest mean test loss in the runs of Plain without noise on the same
    dataset with the same network, of those configured as most are; for one of these itself, in the
    others. NaN if there is none, or if a run left no test.npz.
    """
    losses, values = _clean_losses(table, configs, directories, skipped), {}
    for (config, seed), directory in directories.items():
        clean = losses.get(_recipe(configs[config]), {})
        others = [loss for key, loss in clean.items() if key != (config, seed)]
        arrays = _tested(directory, skipped) if others else None
        if arrays is None:
            continue
        target, predicted, loss = arrays
        if len(loss) == len(others[0]):
            number = max(1, round(HARD * len(loss)))
            hardest = np.argsort(-np.mean(others, axis=0), kind="stable")[:number]
            difference = target[hardest] - predicted[hardest]
            if configs[config]["task"] == "regression":
                values[config, seed] = float(np.abs(difference).mean())
            else:
                values[config, seed] = float(100 * (difference == 0).mean())
    keys = zip(table.config, table.seed, strict=True)
    known = pd.Series([values.get(key, np.nan) for key in keys], table.index, float)
    return table.assign(hard_test=known.fillna(table.hard_test) if "hard_test" in table else known)


def _clean_losses(table, configs, directories, skipped):
    """Recipe -> (config, seed) -> test losses [n] of the runs that tell what is hard."""
    without_noise = (table.fraction == 0) & (table.realised.astype(float) == 0)
    clean = table[(table.method == "Plain") & without_noise]
    losses = {}
    for config in clean.config.value_counts(ascending=True).index:  # the most frequent one stays
        own = {}
        for key in clean[clean.config == config][KEY].itertuples(index=False, name=None):
            arrays = _tested(directories[key], skipped) if key in directories else None
            if arrays is not None:
                own[key] = arrays[-1]
        if len({len(loss) for loss in own.values()}) == 1:
            losses[_recipe(configs[config])] = own
    return losses


def _recipe(config):
    """What two runs share if their test samples are the same and as hard for both networks."""
    dataset = {key: value for key, value in config["dataset"].items() if key != "selection"}
    same = [dataset, data_of(config), config["model"], config["task"]]
    return json.dumps(same, sort_keys=True)


def _tested(directory, skipped):
    return read_arrays(directory / "test.npz", ("target", "predicted", "loss"), skipped)
