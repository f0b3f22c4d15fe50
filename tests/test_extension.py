"""A finished run that goes on for more epochs."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from utils import schedules
from utils.build import build
from utils.run_state import run_state

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
    _, directory, *_ = run("epochs=3", **PLAIN)
    before = {path: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    for options in (
        ["epochs=2"],
        ["batch_size=64"],
        ["epochs=6", "batch_size=256"],  # twice what it was, as the epochs are
        ["epochs=6", "optimizer.lr=0.2"],
        ["epochs=6", "optimizer.weight_decay=0.9"],
        ["epochs=6", "noise.fraction=0.8"],
        ["epochs=6", "seed=2"],
        ["epochs=6", "validation.fraction=0.1"],
        ["epochs=6", "record_losses=true"],
        ["epochs=6", "loss=GCE"],
        ["epochs=6", "schedule={name: StepLR, step_size: 2}"],
    ):
        code, _, _, complaint = run(*options, **PLAIN)
        assert code == 2 and "holds a run with another configuration" in complaint, options
    assert {path: path.read_bytes() for path in directory.iterdir() if path.is_file()} == before


def test_milestones_are_shares_too(run):
    options = ["schedule={name: MultiStepLR, milestones: [50% of epochs, 75% of epochs]}"]
    _, whole, *_ = run(*options, "epochs=8", name="whole", **PLAIN)
    run(*options, "epochs=4", **PLAIN)
    code, directory, *_ = run(*options, "epochs=8", **PLAIN)
    assert code == 0 and rates(directory)[4:] == pytest.approx(rates(whole)[4:])


def test_an_extension_that_breaks_off_is_not_finished(run, monkeypatch):
    run("epochs=2", **PLAIN)

    def full(*arguments, **keywords):
        raise OSError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("utils.training_record.TrainingRecord.start", full)
        code, directory, *_ = run("epochs=4", **PLAIN)
    assert code == 1 and run_state(directory)[0] == "failed"
    code, _, printed, _ = run("epochs=4", **PLAIN)
    assert code == 0 and len(rates(directory)) == 4 and "is finished:" not in printed
    assert run_state(directory)[0] == "done"


def test_a_refused_extension_leaves_the_run_as_it_was(run, tmp_path):
    for number in range(20):
        Image.new("L", (8, 8), 10 * number).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{'ab'[number % 2]}" for number in range(20)]
    table = tmp_path / "table.csv"
    options = [f"dataset.file={table}", f"dataset.root={tmp_path}", "dataset.image_size=8"]
    options += ["dataset.num_workers=0", "features=null", "model={name: mlp, hidden: [4]}"]

    def train(lines, *more):
        table.write_text("\n".join(["path,label", *lines]))
        return run(*options, *more, params="params/csv/plain.yaml")

    code, directory, *_ = train(rows, "epochs=2")
    before = (directory / "config.yaml").read_bytes()
    assert code == 0
    code, _, _, complaint = train(rows[1:], "epochs=4")
    assert code == 2 and "choose another run_dir=" in complaint
    assert (directory / "config.yaml").read_bytes() == before
    assert run_state(directory)[0] == "done"
    assert train(rows, "epochs=4")[0] == 0 and len(rates(directory)) == 4


SCHEDULES = [
    {"name": "LinearLR", "total_iters": 3},
    {"name": "ConstantLR", "total_iters": 3},
    {"name": "MultiStepLR", "milestones": [0, 4]},
    {"name": "StepLR", "step_size": 2},
    {"name": "CosineAnnealingLR", "T_max": 6},
    {"name": "PolynomialLR", "total_iters": 6},
    {"name": "ExponentialLR", "gamma": 0.5},
    {"name": "ConstantThenLinear", "constant_epochs": 4, "late_beta1": 0.1},
]


@pytest.mark.parametrize("spec", SCHEDULES, ids=lambda spec: spec["name"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_schedule_is_taken_to_where_the_longer_one_is(spec, times):
    def made():
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        facts = {"optimizer": optimizer, "epochs": 6, "steps_per_epoch": 1}
        if spec["name"] != "ConstantThenLinear":
            facts = {"optimizer": optimizer}
        schedule = build(schedules, spec, **facts)
        optimizer.step()  # else PyTorch warns
        return optimizer, schedule

    def at_its_place(optimizer):
        (group,) = optimizer.param_groups
        return group["lr"], *group["betas"]

    expected, longer = made()
    for _ in range(3):
        longer.step()
    optimizer, schedule = made()
    extended = schedules.FromItsStart(schedule)
    for group in optimizer.param_groups:  # what the checkpoint has of the shorter one
        group.update(lr=0.007, betas=(0.1, 0.999))
    for last_epoch in (5, 3)[-times:]:  # of a checkpoint that is damaged, and of the one before
        extended.load_state_dict({"last_epoch": last_epoch})
    assert at_its_place(optimizer) == pytest.approx(at_its_place(expected))
    longer.step()
    schedule.step()
    assert at_its_place(optimizer) == pytest.approx(at_its_place(expected))
