"""The search for hyper-parameters: drawn alike for all, judged on noisy held-out labels alone."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import losses
import main
from experiment import SCHEMAS
from losses.task import cross_entropy
from models.several import build_several
from tests.fixtures import make_run
from utils.build import build
from utils.config import load, resolve, without_own_rate
from utils.errors import UserError
from utils.report.collect import collect
from utils.sweep import search, spaces, trials
from utils.sweep.figure import draw_trials

ROOT = Path(__file__).parents[1]


def as_dict(overrides):
    return dict(text.split("=") for text in overrides)


@pytest.mark.parametrize("method", spaces.SPACES)
def test_trials_are_drawn_in_their_ranges_and_stay_as_they_are(method):
    drawn = [spaces.draw("mnist", method, trial) for trial in range(40)]
    assert drawn == [spaces.draw("mnist", method, trial) for trial in range(40)]
    assert len({" ".join(overrides) for overrides in drawn}) == 40
    values = [as_dict(overrides) for overrides in drawn]
    rates = [float(value["optimizer.lr"]) for value in values]
    low, high = (1e-4, 0.03) if method == "gradient_rescaling" else (0.001, 0.3)
    assert low <= min(rates) < 10 * low and high / 10 < max(rates) <= high
    for trial, value in enumerate(values):
        plain = as_dict(spaces.draw("mnist", "plain", trial))
        assert value["optimizer.weight_decay"] == plain["optimizer.weight_decay"]
    if method == "discrimloss":
        switches = [int(value["loss.q"]) for value in values]
        assert 2 <= min(switches) < 6 and 14 < max(switches) <= 18


MLP_METHODS = [path.stem for path in ROOT.glob("params/mnist_mlp/*.yaml") if path.stem != "base"]


def test_the_learning_rate_that_a_protocol_is_published_with_stays():
    for method in MLP_METHODS:
        values = as_dict(spaces.draw("mnist_mlp", method, 0))
        assert set(values) == set(spaces.SPACES[method])
        assert not any(key.startswith("optimizer.") for key in values)
    for method, key, low, high in (
        ("discrimloss", "loss.q", 5, 100),
        ("selfie", "loss.warm_up", 5, 40),
        ("joint_optimization", "loss.begin", 10, 40),
    ):
        drawn = [int(as_dict(spaces.draw("mnist_mlp", method, trial))[key]) for trial in range(40)]
        assert low <= min(drawn) < high / 3 and high / 2 < max(drawn) <= high


@pytest.mark.parametrize(
    "dataset, method",
    [(dataset, method) for dataset in ("mnist", "cifar10_features") for method in spaces.SPACES]
    + [("mnist_mlp", method) for method in sorted(MLP_METHODS)],
)
def test_every_trial_can_be_built(dataset, method):
    """A trial that cannot is never over, and so nothing of its method is ever chosen."""
    for trial in range(40):
        overrides = ["noise.fraction=0.8", *spaces.draw(dataset, method, trial)]
        config = load(str(ROOT / f"params/{dataset}/{method}.yaml"), overrides, SCHEMAS)
        networks = getattr(getattr(losses, config["loss"]["name"]), "networks", 1)
        build(
            losses,
            without_own_rate(losses, config["loss"]),
            task_loss=cross_entropy,
            num_samples=50,
            num_outputs=10,
            given=torch.arange(50) % 10,
            noise_rate=0.8,
            noise_transition=torch.eye(10).double(),
            model=build_several(lambda: torch.nn.Linear(3, 10), networks),
            epochs=config["epochs"],
            steps_per_epoch=7,
        )


def test_methods_with_different_protocols_are_not_compared():
    message = "rsl of params/cifar10 differ from plain in model, epochs"
    with pytest.raises(UserError, match=message):
        search.cells_of_stage("trials", "cifar10", "pair", ["0.4"], ["plain", "rsl"], 1)


@pytest.mark.parametrize(
    "dataset, methods, message",
    [
        ("digitsum", ["plain"], "chooses by accuracy, and params/digitsum/plain.yaml is of"),
        ("mnist", ["plain", "co_teaching_plus"], "clip_norm, schedule or optimizer"),
    ],
)
def test_what_cannot_be_compared_is_not_searched(dataset, methods, message):
    with pytest.raises(UserError, match=message):
        search.cells_of_stage("trials", dataset, "pair", ["0.4"], methods, 1)


def test_both_stages_run_and_the_best_on_held_out_labels_is_chosen(tmp_path, monkeypatch, capsys):
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)
    quick = ["model=mlp", "model.hidden=[8]", "epochs=2", "threads=1", "device=cpu"]

    def cells(stage, methods="plain rsl", trials=2, seeds=()):
        fixed = (stage, "digits", "symmetric", ["0.4"])
        return search.cells_of_stage(*fixed, methods.split(), trials, seeds)

    def run(lines):
        for line in lines:
            for part in line.split(" && "):
                assert main.main([*shlex.split(part), *quick]) == 0
        return lines

    with pytest.raises(UserError, match="no finished trial in runs/search/digits"):
        cells("chosen", seeds=[11])
    assert len(run(cells("trials"))) == 4
    table = trials.trials_table(Path("runs/search/digits"))
    assert table.method.tolist() == ["plain"] * 2 + ["rsl"] * 2
    assert table.noisy_validation.between(1, 100).all() and (table.seconds > 0).all()
    assert table.groupby("method").chosen.sum().eq(1).all()
    highest = table.groupby("method").noisy_validation.max()
    assert table.noisy_validation[table.chosen].tolist() == highest.tolist()
    draw_trials(table, tmp_path / "trials.png")
    assert (tmp_path / "trials.png").stat().st_size > 10_000
    run_dir = Path("runs/search/digits/plain/symmetric-0.4/trial1")
    metrics = pd.read_csv(run_dir / "metrics.csv")
    assert table.noisy_validation[1] == metrics.validation_metric.iloc[-1]
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["validation"] == {"fraction": 0.1, "labels": "given"}
    message = r"2 of 3 trials of plain under symmetric-0\.4 are over, 0 of them diverged"
    with pytest.raises(UserError, match=message):
        cells("chosen", trials=3, seeds=[11])
    best = table[table.method == "plain"].noisy_validation.argmax()
    lines = run(cells("chosen", seeds=[11, 12]))
    assert len(lines) == 4
    assert all(text in lines[0] for text in spaces.draw("digits", "plain", best))
    last = json.loads(Path("runs/chosen/digits/rsl/symmetric-0.4/seed12/summary.json").read_text())
    assert last["validation"] is None and last["seed"] == 12
    arguments = ["chosen", "digits", "pair", "0.2", "plain", "2", "11", "--under", "symmetric-0.4"]
    capsys.readouterr()
    assert search.main(arguments) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert all(text in line for text in spaces.draw("digits", "plain", best))
    assert "noise.kind=pair" in line and "plain/pair-0.2-of-symmetric-0.4/seed11" in line
    assert last["selection"]["noise_rate"] != "known"
    (recorded, selected) = lines[1].split(" && ")
    assert "params/digits/plain.yaml" in recorded and "params/digits/rsl.yaml" in selected
    names = set(collect([Path("runs/chosen/digits")]).table.label)
    assert names == {"Plain", "RSL", trials.RECORDING}

    assert search.main([*arguments, "--runs", "others"]) == 2
    assert "no finished trial in others/search/digits" in capsys.readouterr().err
    assert search.main([*arguments, "--runs", "others", "--searched", "runs/search/digits"]) == 0
    assert capsys.readouterr().out == line.replace("run_dir=runs/", "run_dir=others/") + "\n"

    search.main(["table", "runs/search/digits", "--out", "trials.csv"])
    Path("runs/search").rename("elsewhere")
    capsys.readouterr()
    assert search.main([*arguments, "--searched", "trials.csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [line]
    assert search.main([*arguments[:5], "3", "11", *arguments[7:], "--searched", "trials.csv"]) == 2
    assert "trials.csv lacks the others" in capsys.readouterr().err
    table = pd.read_csv("trials.csv")
    table.loc[table.method == "plain", "overrides"] = "optimizer.lr=3"
    table.to_csv("trials.csv", index=False)
    assert search.main([*arguments, "--searched", "trials.csv"]) == 2
    assert "trials [0, 1] of plain under symmetric-0.4 were run" in capsys.readouterr().err


def best_trial(root, method, count):
    table = trials.trials_to_choose_from(root, "mnist", [method])
    return trials.best_trial(table, root, method, "permute-0.4", count)


def test_a_trial_that_diverged_is_over_and_one_that_was_killed_is_not(tmp_path, monkeypatch):
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)
    for method, last in (("gce", "gce"), ("rsl", "rsl_recording")):
        for trial, accuracy in enumerate([40.0, 55.0, None, 50.0]):
            folder = method if accuracy else last
            run = Path("runs/search/mnist", folder, f"permute-0.4/trial{trial}")
            run.mkdir(parents=True)
            if accuracy is None:
                reason = "error: the loss is not finite in epoch 1, step 4\n"
                (run / "failed.txt").write_text(reason)
            else:
                (run / "summary.json").write_text('{"finished": true}')
                (run / "metrics.csv").write_text(
                    f"epoch,validation_metric,test_metric\n0,99,99\n1,{accuracy},90\n"
                )
        root = Path("runs/search/mnist")
        assert best_trial(root, method, 4) == 1
        table = trials.trials_table(root)
        table = table[table.method == method]
        assert table.state.tolist() == ["finished", "finished", "diverged", "finished"]
        assert table.chosen.tolist() == [False, True, False, False]
        if method == "gce":  # of which the recording of RSL says nothing
            recording = root / "rsl_recording/permute-0.4/trial2"
            recording.mkdir(parents=True)
            (recording / "failed.txt").write_text("error: the loss is not finite in epoch 0\n")
        (root / last / "permute-0.4/trial2/failed.txt").write_text("killed by SIGKILL\n")
        with pytest.raises(UserError, match="3 of 4 trials"):
            best_trial(root, method, 4)
        shutil.rmtree(root / "rsl_recording")


def test_trials_of_other_values_are_not_counted(tmp_path, monkeypatch):
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)
    root = Path("runs/search/mnist")
    for trial in range(2):
        run = root / "gce/permute-0.4" / f"trial{trial}"
        config = resolve("params/mnist/gce.yaml", spaces.draw("mnist", "gce", trial))
        config["loss"]["q"] += trial  # the space has changed since the second was run
        make_run(run, [90.0], validation=[50.0 + trial])
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    table = trials.trials_table(root)
    assert table.state.tolist() == ["finished", "other configuration"]
    assert table.noisy_validation.isna().tolist() == [False, True] and table.chosen[0]
    with pytest.raises(UserError, match=r"trials \[1\] of gce .* were run with other values"):
        best_trial(root, "gce", 2)


def test_resampling_says_what_other_trials_would_have_chosen():
    columns = ["method", "noise", "trial", "noisy_validation", "test_last", "chosen"]
    rows = [("plain", 0, 60, 90, False), ("plain", 1, 61, 95, True), ("gce", 0, 62, 91, True)]
    rows += [("gce", 1, 61, 93, False), ("rsl", 0, 60, 99, True), ("rsl", 1, None, None, False)]
    table = pd.DataFrame([(name, "pair-0.4", *rest) for name, *rest in rows], columns=columns)
    searches = trials.resample(table)
    # two numbers are drawn: 0 and 0, or 1 and 1, in a quarter of the cases each
    assert (searches["plain"].trial == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert (searches["gce"].trial == 0).mean() == pytest.approx(0.75, abs=0.02)
    # common numbers: only if both draws are trial 0, 91 is above 90
    ahead = (searches["gce"].test_last > searches["plain"].test_last).mean()
    assert ahead == (searches["plain"].trial == 0).mean()
    # where all drawn trials of a method diverged, there is none to choose
    assert searches["rsl"].trial.isna().mean() == pytest.approx(0.25, abs=0.02)
    line = trials.describe_resamples(table, {"pair-0.4": searches}).splitlines()[-1]
    assert "pair-0.4: plain - gce: +4.00 with these trials, [-1.00, +4.00] in 90 %" in line
    assert line.endswith(f"ahead in {100 * (1 - ahead):.0f} %")
    shares = trials.with_shares(table.assign(overrides=""), {"pair-0.4": searches}).chosen_share
    assert shares[0] == (searches["plain"].trial == 0).mean()
    assert shares[:4].to_list() == pytest.approx([0.25, 0.75, 0.75, 0.25], abs=0.02)
    # a method all of whose drawn trials diverged is behind, and its interval is of the others
    line = next(
        line for line in trials.describe_resamples(table, {"pair-0.4": searches}).splitlines()
    )
    sound = searches["rsl"].trial.notna().sum()
    assert f"rsl - plain: +4.00 with these trials, [+4.00, +9.00] in 90 % of {sound:,}" in line
    assert f"ahead in {sound / 100:.0f} % of 10,000: in the others all trials of one" in line
    # what only one method has is left aside, in the difference as in its interval
    more = [("plain", "pair-0.4", 2, 99, 99, True)]
    table.loc[1, "chosen"] = False
    table = pd.concat([table, pd.DataFrame(more, columns=columns)], ignore_index=True)
    unequal = trials.describe_resamples(table, {"pair-0.4": trials.resample(table)})
    assert "plain - gce: +4.00 with the 2 trials that all have, [-1.00, +4.00]" in unequal
    # methods that have no trial in common are not compared
    table = table.iloc[[0, 3]]
    apart = {"pair-0.4": trials.resample(table)}
    assert apart == {"pair-0.4": {}} and trials.describe_resamples(table, apart) == ""


def test_a_table_of_the_first_trials_is_as_if_the_others_had_not_been_run(tmp_path, capsys):
    rows = [("gce", trial, 50 + trial, 80 - trial) for trial in range(4)]
    rows += [("plain", trial, 50, 70 + trial) for trial in range(4)]
    table = pd.DataFrame(rows, columns=["method", "trial", "noisy_validation", "test_last"])
    table = table.assign(noise="pair-0.4", state="finished", seconds=1.0, overrides="lr=1")
    trials.with_chosen(table).to_csv(tmp_path / "all.csv", index=False)
    assert search.main(["table", str(tmp_path / "all.csv")]) == 0
    assert "gce - plain: +7.00 with these trials" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "two.csv")]
    assert search.main(["table", str(tmp_path / "all.csv"), "--first", "2", *out]) == 0
    assert "gce - plain: +9.00 with these trials" in capsys.readouterr().out
    first = pd.read_csv(tmp_path / "two.csv")
    assert first.trial.max() == 1 and first.trial[first.chosen].to_list() == [1, 0]


def test_what_is_wrong_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "params").symlink_to(ROOT / "params")
    monkeypatch.chdir(tmp_path)
    Path("empty.csv").touch()
    Path("other.csv").write_text("a,b\n1,2\n")
    strange = Path("runs/search/digits/plain/symmetric-0.4/trial1-old")
    strange.mkdir(parents=True)
    (strange / "summary.json").write_text('{"finished": true}')
    for arguments, message in (
        ("table empty.csv", "empty.csv: No columns to parse"),
        ("table other.csv", "other.csv is no table of trials: it lacks the columns method, noise"),
        ("table runs/search/digits", "is named like a trial, trial<number>, and is none"),
        ("table nowhere", "there is no finished trial in nowhere"),
        ("trials digits none 0 nothing 1", "there is no params file params/digits/nothing.yaml"),
        ("trials digits none 0 rsl_mixmatch 1", "no search space for 'rsl_mixmatch'"),
    ):
        assert search.main(arguments.split()) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith("error: ") and complaint.count("\n") == 1
        assert message in complaint


@pytest.mark.parametrize(
    "command",
    [
        "python -m utils.search trials digits symmetric 0.4 plain 8",
        "python -m utils.report results/digits",
        "bash examples/mnist.sbatch --status",
        "python main.py params/mnist",
        "bash examples/mnist.sbatch --dry-run",
    ],
)
def test_a_reader_may_stop_reading(command):
    words = [sys.executable if word == "python" else word for word in command.split()]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as output:
        done = subprocess.run(
            words,
            env=os.environ | {"PYTHON": sys.executable},
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode in (-signal.SIGPIPE, 128 + signal.SIGPIPE) and not done.stderr
