"""The search for hyper-parameters.

Drawn alike for all, and judged on noisy held-out labels alone.
"""

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest

import main
from utils import search
from utils.report import figures

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("method", search.SPACES)
def test_trials_are_drawn_in_their_ranges_and_stay_as_they_are(method):
    drawn = [search.draw("mnist", method, trial) for trial in range(40)]
    assert drawn == [search.draw("mnist", method, trial) for trial in range(40)]
    assert len({" ".join(one) for one in drawn}) == 40
    values = [dict(text.split("=") for text in one) for one in drawn]
    rates = [float(one["optimizer.lr"]) for one in values]
    low, high = (1e-4, 0.03) if method == "gradient_rescaling" else (0.001, 0.3)
    assert low <= min(rates) < 10 * low and high / 10 < max(rates) <= high
    decays = [one["optimizer.weight_decay"] for one in values]
    assert decays == [
        dict(text.split("=") for text in search.draw("mnist", "plain", trial))[
            "optimizer.weight_decay"
        ]
        for trial in range(40)
    ]
    if method == "discrimloss":
        switches = [int(one["loss.q"]) for one in values]
        assert 2 <= min(switches) < 6 and 14 < max(switches) <= 18


def test_methods_with_different_protocols_are_not_compared():
    with pytest.raises(
        ValueError, match="rsl of params/cifar10 differ from plain in model, epochs"
    ):
        search.cells("trials", "cifar10", "pair", ["0.4"], ["plain", "rsl"], 1)


def test_both_stages_run_and_the_best_on_held_out_labels_is_chosen(tmp_path, monkeypatch):
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)
    quick = ["model=mlp", "model.hidden=[8]", "epochs=2", "threads=1", "device=cpu"]

    def cells(stage, methods="plain rsl", trials=2, seeds=()):
        return search.cells(stage, "digits", "symmetric", ["0.4"], methods.split(), trials, seeds)

    def run(lines):
        for line in lines:
            for part in line.split(" && "):
                assert main.main([*shlex.split(part), *quick]) == 0
        return lines

    with pytest.raises(ValueError, match="no finished trial in runs/search/digits"):
        cells("chosen", seeds=[11])
    assert len(run(cells("trials"))) == 4
    found = search.table(Path("runs/search/digits"))
    assert (
        found.method.tolist() == ["plain"] * 2 + ["rsl"] * 2
        and found.noisy_validation.between(1, 100).all()
    )
    assert found.groupby("method").chosen.sum().eq(1).all() and (found.seconds > 0).all()
    assert (
        found.noisy_validation[found.chosen].tolist()
        == found.groupby("method").noisy_validation.max().tolist()
    )
    figures.save(figures.trials(found), tmp_path / "trials.png", ("png",))
    assert (tmp_path / "trials.png").stat().st_size > 10_000
    run_dir = Path("runs/search/digits/plain/symmetric-0.4/trial1")
    assert (
        found.noisy_validation[1] == pd.read_csv(run_dir / "metrics.csv").validation_metric.iloc[-1]
    )
    assert json.loads((run_dir / "summary.json").read_text())["validation"] == {
        "fraction": 0.1,
        "labels": "given",
    }
    with pytest.raises(
        ValueError,
        match=r"2 of 3 trials of plain under symmetric-0\.4 are over, 0 of them diverged",
    ):
        cells("chosen", trials=3, seeds=[11])
    better = found[found.method == "plain"].noisy_validation.argmax()
    lines = run(cells("chosen", seeds=[11, 12]))
    assert len(lines) == 4 and all(
        text in lines[0] for text in search.draw("digits", "plain", better)
    )
    last = json.loads(Path("runs/chosen/digits/rsl/symmetric-0.4/seed12/summary.json").read_text())
    assert (
        last["validation"] is None
        and last["seed"] == 12
        and last["selection"]["noise_rate"] != "known"
    )


def test_a_trial_that_diverged_is_over_and_one_that_was_killed_is_not(tmp_path, monkeypatch):
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)
    for method, last in (("gce", "gce"), ("rsl", "rsl_recording")):
        for trial, accuracy in enumerate([40.0, 55.0, None, 50.0]):
            run = Path(
                "runs/search/mnist", method if accuracy else last, f"permute-0.4/trial{trial}"
            )
            run.mkdir(parents=True)
            if accuracy is None:
                (run / "failed.txt").write_text(
                    "error: the loss is not finite in epoch 1, step 4\n"
                )
            else:
                (run / "summary.json").write_text('{"finished": true}')
                (run / "metrics.csv").write_text(
                    f"epoch,validation_metric,test_metric\n0,99,99\n1,{accuracy},90\n"
                )
        root = Path("runs/search/mnist")
        assert search.best(root, method, "permute-0.4", 4) == 1
        found = search.table(root)
        assert found[found.method == method].state.tolist() == [
            "finished",
            "finished",
            "diverged",
            "finished",
        ]
        assert found.chosen[found.method == method].tolist() == [False, True, False, False]
        (root / last / "permute-0.4/trial2/failed.txt").write_text("killed by SIGKILL\n")
        with pytest.raises(ValueError, match="3 of 4 trials"):
            search.best(root, method, "permute-0.4", 4)
