"""The search for hyper-parameters: drawn alike for all, and judged on noisy held-out labels alone."""

import shlex
from pathlib import Path

import pandas as pd
import pytest

import main
from utils import search

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("method", search.SPACES)
def test_trials_are_drawn_in_their_ranges_and_stay_as_they_are(method):
    drawn = [search.draw("mnist", method, "0.4", trial) for trial in range(40)]
    assert drawn == [search.draw("mnist", method, "0.4", trial) for trial in range(40)]
    assert len({" ".join(one) for one in drawn}) == 40
    rates = [float(dict(text.split("=") for text in one)["optimizer.lr"]) for one in drawn]
    low, high = (1e-4, 0.03) if method == "gradient_rescaling" else (0.001, 0.3)
    assert low <= min(rates) < 10 * low and high / 10 < max(rates) <= high
    if method == "discrimloss":
        switches = [int(dict(text.split("=") for text in one)["loss.q"]) for one in drawn]
        assert 2 <= min(switches) < 6 and 14 < max(switches) <= 18


def test_both_stages_run_and_the_best_on_held_out_labels_is_chosen(tmp_path, monkeypatch, capsys):
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)
    quick = ["model=mlp", "model.hidden=[8]", "epochs=2", "threads=1", "device=cpu"]

    def run(stage, seeds=()):
        lines = search.cells(stage, "digits", ["plain", "rsl"], ["0.4"], 2, seeds)
        for line in lines:
            for part in line.split(" && "):
                assert main.main([*shlex.split(part), *quick]) == 0
        return lines

    with pytest.raises(ValueError, match="no finished trial in runs/search/digits"):
        search.cells("chosen", "digits", ["plain"], ["0.4"], 2, [11])
    assert len(run("trials")) == 4
    found = search.table(Path("runs/search/digits"))
    assert found.method.tolist() == ["plain"] * 2 + ["rsl"] * 2 and found.noisy_validation.between(1, 100).all()
    held_out = pd.read_csv("runs/search/digits/plain/symmetric-0.4/trial1/metrics.csv").validation_metric
    assert found.noisy_validation[1] == held_out.iloc[-1]
    with pytest.raises(ValueError, match=r"2 of 3 trials of plain at 0\.4 are over, 2 of them finished"):
        search.cells("chosen", "digits", ["plain"], ["0.4"], 3, [11])
    better = found[found.method == "plain"].noisy_validation.argmax()
    lines = run("chosen", [11, 12])
    assert len(lines) == 4 and all(text in lines[0] for text in search.draw("digits", "plain", "0.4", better))
    assert "validation.fraction" not in lines[0] and Path("runs/chosen/digits/rsl/symmetric-0.4/seed12/summary.json").exists()
    capsys.readouterr()


def test_a_trial_that_failed_is_over_and_is_not_chosen(tmp_path, monkeypatch):
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)
    runs = Path("runs/search/mnist/gce/permute-0.4")
    for trial, accuracy in enumerate([40.0, 55.0, None, 50.0]):
        (runs / f"trial{trial}").mkdir(parents=True)
        if accuracy is None:
            (runs / f"trial{trial}/failed.txt").write_text("exit status 1\n")
        else:
            (runs / f"trial{trial}/summary.json").write_text('{"finished": true}')
            (runs / f"trial{trial}/metrics.csv").write_text(f"epoch,validation_metric,test_metric\n0,99,99\n1,{accuracy},90\n")
    assert search.best(runs.parents[1], "gce", "0.4", 4) == 1
    assert search.table(runs.parents[1]).noisy_validation.isna().tolist() == [False, False, True, False]
    (runs / "trial2/failed.txt").unlink()
    with pytest.raises(ValueError, match="3 of 4 trials"):
        search.best(runs.parents[1], "gce", "0.4", 4)
