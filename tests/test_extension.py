"""A finished run that goes on for more epochs."""

import numpy as np
import pandas as pd
import pytest
import yaml

PLAIN = {"params": "params/digits/plain.yaml"}


def rates(directory):
    return pd.read_csv(directory / "metrics.csv").lr.tolist()


@pytest.mark.parametrize(
    "options", [["schedule=null"], ["schedule={name: MultiStepLR, milestones: [1]}"]]
)
def test_without_a_share_of_the_epochs_it_is_the_longer_run(run, options):
    options = [*options, "record_losses=true", "noise.fraction=0.2"]
    _, whole, *_ = run(*options, "epochs=5", name="whole", **PLAIN)
    assert run(*options, "epochs=3", **PLAIN)[0] == 0
    code, directory, printed, _ = run(*options, "epochs=5", **PLAIN)
    assert code == 0 and "is finished, and goes on: epochs=5 (was 3)" in printed
    for name in ("samples.npz", "test.npz"):
        first, second = (dict(np.load(path / name)) for path in (whole, directory))
        for key in first:
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    for name in ("losses.npy", "margins.npy"):
        np.testing.assert_array_equal(np.load(whole / name), np.load(directory / name))
    assert rates(whole) == rates(directory)
    config = yaml.safe_load((directory / "config.yaml").read_text())
    assert config["extended"] == [{"epochs": 3}] and config["epochs"] == 5
    code, _, printed, _ = run(*options, "epochs=5", **PLAIN)
    assert code == 0 and "is finished: test accuracy" in printed


def test_a_schedule_is_the_longer_one_from_there_on(run):
    options = ["schedule={name: CosineAnnealingLR, T_max: 100% of epochs}"]
    _, whole, *_ = run(*options, "epochs=6", name="whole", **PLAIN)
    run(*options, "epochs=3", **PLAIN)
    _, directory, printed, _ = run(*options, "epochs=6", **PLAIN)
    assert "epochs=6 (was 3), " not in printed or "schedule.T_max=6 (was 3)" in printed
    assert rates(directory)[3:] == pytest.approx(rates(whole)[3:], rel=1e-5)
    assert rates(directory)[:3] != pytest.approx(rates(whole)[:3], rel=1e-5)


def test_only_more_epochs_of_a_finished_run_are_an_extension(run):
    run("epochs=3", **PLAIN)
    for options in (["epochs=2"], ["epochs=6", "batch_size=64"], ["batch_size=64"]):
        code, _, _, complaint = run(*options, **PLAIN)
        assert code == 2 and "holds a run with another configuration" in complaint
