"""Configurations: what wins over what, how values are read, how mistakes are reported."""

import pytest
import yaml

from experiment import SCHEMAS
from utils.build import fits, unknown
from utils.config import Loader, differences, load, merge, parse, run_dir

DIGITS, MNIST = "params/digits/discrimloss.yaml", "params/mnist/discrimloss.yaml"


def config(*overrides, path=DIGITS):
    return load(str(path), list(overrides), SCHEMAS)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-2.5e-4", -2.5e-4),
        ("+1e+2", 100.0),
        (".5e1", 5.0),
        ("6.1e-45", 6.1e-45),
        ("3", 3),
        ("0.1", 0.1),
        ("e5", "e5"),
        ("1e", "1e"),
        ("'1e-3'", "1e-3"),
        ("true", True),
        ("null", None),
        ("[1e1, 2]", [10.0, 2]),
    ],
)
def test_numbers_in_scientific_notation_are_numbers(text, value):
    loaded = yaml.load(text, Loader)
    assert loaded == value
    assert type(loaded) is type(value)


def test_scientific_notation_in_a_file_and_on_the_command_line(tmp_path):
    path = tmp_path / "plain.yaml"
    path.write_text("loss: Plain\noptimizer: {name: SGD, lr: 1e-3}\n")
    assert config(path=path)["optimizer"]["lr"] == 0.001
    assert config("optimizer.lr=5e-2", path=path)["optimizer"]["lr"] == 0.05


def test_later_wins(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "epochs: 1\nbatch_size: 2\nseed: 3\nloss: {name: DiscrimLoss, beta: 0.1, a: 0.1, p: 0.1}\n"
    )
    (tmp_path / "method.yaml").write_text(
        "base: base.yaml\nbatch_size: 20\nseed: 30\nloss: {a: 0.2, p: 0.2}\n"
        "by_fraction: {0.4: {seed: 300, loss: {p: 0.3}}, 0.2: {seed: 7}}\n"
    )
    resolved = config("seed=3000", path=tmp_path / "method.yaml")
    assert (resolved["epochs"], resolved["batch_size"], resolved["seed"]) == (1, 20, 3000)
    assert resolved["loss"] == {"name": "DiscrimLoss", "beta": 0.1, "a": 0.2, "p": 0.3}
    assert config("noise.fraction=0.2", path=tmp_path / "method.yaml")["seed"] == 7
    assert config("loss.p=9", path=tmp_path / "method.yaml")["loss"]["p"] == 9


def test_a_section_with_another_name_starts_afresh():
    gce = {"name": "GCE", "q": 0.5}
    assert config("loss=GCE", "loss.q=0.5")["loss"] == gce
    assert config("loss.q=0.5", "loss=GCE")["loss"] == gce
    adam = {"name": "Adam", "lr": 0.001}
    assert config("optimizer=Adam", "optimizer.lr=1e-3")["optimizer"] == adam
    assert merge({"loss": dict(gce)}, {"loss": "GCE"}) == {"loss": gce}
    cosine = {"name": "CosineAnnealingLR", "T_max": 60}
    assert config("schedule=CosineAnnealingLR", "schedule.T_max=60")["schedule"] == cosine
    assert config("noise=pair")["noise"]["kind"] == "pair"


def test_noise_seed_and_run_directory_follow():
    assert config("seed=7")["noise"]["seed"] == 7
    assert config("seed=7", "noise.seed=1")["noise"]["seed"] == 1
    assert config("seed=7")["run_dir"] == "runs/digits/discrimloss/symmetric-0.4/seed7"
    assert config("noise=none")["run_dir"] == "runs/digits/discrimloss/none/seed1"
    assert config("noise=none")["noise"]["fraction"] == 0
    labels_of_a_file = config("noise.kind=file:a/b c.npz#key")
    assert labels_of_a_file["run_dir"] == "runs/digits/discrimloss/file-b-c.npz-key/seed1"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["los=GCE"], "'los' is not known; did you mean 'loss'"),
        (["loss=discrimloss"], "loss.name: 'discrimloss' is not known; did you mean 'DiscrimLoss'"),
        (["model=lenett"], "model.name: 'lenett' is not known; did you mean 'lenet'"),
        (["dataset=cifar_10"], "dataset.name: 'cifar_10' is not known; did you mean 'cifar10'"),
        (["optimizer=sgdd"], "did you mean 'SGD'"),
        (["loss.betta=1"], "loss.betta: 'betta' is not known of DiscrimLoss; did you mean 'beta'"),
        (["noise.frction=0.4"], "did you mean 'fraction'"),
        (["loss.beta=high"], "loss.beta must be a number, got 'high'"),
        (
            ["loss.threshold=median"],
            "loss.threshold must be 'ema' or 'mean' or a number, got 'median'",
        ),
        (["epochs=1.5"], "epochs must be a whole number, got 1.5"),
        (["epochs=0"], "epochs must be at least 1, got 0"),
        (["batch_size=-1"], "batch_size must be at least 1, got -1"),
        (["batch_size=0"], "batch_size must be at least 1, got 0"),
        (["batch_size=true"], "batch_size must be a whole number, got True"),
        (["noise.fraction=1.5"], r"noise.fraction must lie in \[0, 1\], got 1.5"),
        (["noise.fraction=-0.1"], r"noise.fraction must lie in \[0, 1\]"),
        (["noise.fraction=much"], "noise.fraction must be a number, got 'much'"),
        (["validation.fraction=0.95"], "leaves nothing to train on"),
        (["seed=-1"], "seed must lie in"),
        (["device=gpu"], "device must be auto, cpu"),
        (["precision=fp16"], "'fp32' or 'bf16'"),
        (["threads=0"], "threads must be at least 1"),
        (["compile=yes please"], "compile must be true or false"),
        (["schedule=MultiStepLR"], "schedule.milestones is missing"),
        (["model.name=null"], "model.name: None is not known"),
        (["schedule=ReduceLROnPlateau"], "schedule.name: 'ReduceLROnPlateau' is not known"),
        (["loss=GradientRescaling"], "loss.beta is missing: GradientRescaling needs it"),
        (["optimizer=Adam", "optimizer.betas=[0.9, x]"], "optimizer.betas must be a list"),
        (["validation=0.1"], "validation must be a section"),
        (["dataset=3"], "dataset must be a section"),
        (["epochs"], "an override is written key=value"),
        (["--epochs", "3"], "an override is written key=value"),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(overrides, message):
    with pytest.raises(ValueError, match=message):
        config(*overrides)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(ValueError) as error:
        config("epoch=3", "loss.betta=1", "model=lenett", "batch_size=0")
    assert len(str(error.value).splitlines()) == 4


def test_a_fraction_without_a_row_lists_the_rows(tmp_path):
    with pytest.raises(ValueError, match=r"fractions 0.0, 0.2, 0.4, 0.6, 0.8, got 0.3"):
        config("noise.fraction=0.3", path=MNIST)
    assert config("noise=none", path=MNIST)["loss"]["q"] == 12  # the row of clean data
    path = tmp_path / "method.yaml"
    path.write_text("by_fraction: {0.4: {seed: 4}, default: {seed: 9}}\n")
    assert config("noise.fraction=0.3", path=path)["seed"] == 9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: [1", "is not valid YAML"),
        ("epochs: 1\nepochs: 2", "'epochs' stands here twice"),
        ("- a\n- b", "must hold keys"),
        ("base: method.yaml", "itself as its base"),
        ("base: other.yaml", "there is no params file"),
        ("by_fraction: [1]", "must map"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path, content, message):
    path = tmp_path / "method.yaml"
    path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        config(path=path)


def test_a_missing_file_lists_its_neighbours():
    with pytest.raises(FileNotFoundError, match=r"params/digits/gce\.yaml"):
        config(path="params/digits/discrim.yaml")


def test_help_prints_the_manual_and_every_key(capsys):
    with pytest.raises(SystemExit) as stop:
        parse([DIGITS, "--help", "batch_size=64"], "The manual.", SCHEMAS)
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert printed.startswith("The manual.")
    for line in (
        "batch_size=64",
        "loss.beta=0.9",
        "loss.threshold=ema",
        "optimizer.nesterov=false",
        "noise.kind=symmetric",
    ):
        assert f"  {line}\n" in printed
    with pytest.raises(SystemExit):
        parse(["-h"], "The manual.", SCHEMAS)
    with pytest.raises(ValueError, match="first argument is a params file"):
        parse(["epochs=3"], "The manual.", SCHEMAS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["params/mnist/plain.yaml", "data_root=/nowhere"],
            "MNIST under data_root=/nowhere was not found",
        ),
        (["params/digits/gce.yaml", "loss.q=2"], "GCE: q must lie in"),
        (["params/digits/plain.yaml", "noise=pare"], "did you mean 'pair'"),
        (["params/digits/plain.yaml", "model=lenet"], "lenet"),
        (["params/digits/plain.yaml", "optimizer.lr=-1"], "SGD: Invalid learning rate"),
        (["params/folder/plain.yaml", "data_root=/nowhere"], "/nowhere/train is not a folder"),
        (["params/digits/plain.yaml", "noise.kind=file:/nowhere.npz"], "no such file"),
        ([], "first argument is a params file"),
    ],
)
def test_a_users_mistake_is_one_error_with_exit_code_2(
    arguments, message, capsys, tmp_path, monkeypatch
):
    import torchvision

    import main

    def download(self):
        raise RuntimeError("offline")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    if arguments:
        arguments = [*arguments, f"run_dir={tmp_path}/run"]
    code = main.main(arguments)
    stderr = capsys.readouterr().err
    assert code == 2
    assert stderr.startswith("error: ")
    assert message in stderr
    # so that the corrected command meets nothing in its way
    assert {path.name for path in tmp_path.glob("run/*")} <= {".lock"}


def test_differences_ignore_where_a_run_is_executed():
    first = config()
    elsewhere = config("device=cpu", "threads=1", "data_root=elsewhere", "run_dir=x")
    assert differences(first, elsewhere) == []
    assert differences(first, config("loss.a=0.3", "schedule=StepLR", "schedule.step_size=3")) != []
    # as written by a version that did not know these keys
    older = dict(first)
    del older["record_losses"], older["augment_recording"]
    older["validation"] = {"fraction": 0.0}
    assert differences(older, first) == []
    recording = config("record_losses=true")
    assert differences(older, recording) == ["record_losses: False before, True now"]


def test_types_and_suggestions():
    assert fits(3, float)
    assert not fits(True, float)
    assert not fits(True, int)
    assert not fits(1.0, int)
    assert fits([1, 2], list[int])
    assert not fits([1, "a"], list[int])
    assert fits(None, int | None)
    assert not fits("1", int | None)
    assert not fits("ab", list[str])
    assert "did you mean 'b1'" in unknown("key", "B1", ["a1", "b1"])
    assert "did you mean" not in unknown("key", "xyz", ["beta"])


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("targets: ~/labels.npz\n")
    (tmp_path / "mine.yaml").write_text("base: ~/base.yaml\nnoise: {kind: 'file:~/noise.csv'}\n")
    options = ["run_dir=~/run", "data_root=~/data", "dataset={name: folder, root: ~/images}"]
    config = load(str(tmp_path / "mine.yaml"), options, SCHEMAS)
    assert config["run_dir"] == f"{tmp_path}/run" and config["data_root"] == f"{tmp_path}/data"
    assert config["dataset"]["root"] == f"{tmp_path}/images"
    assert config["targets"] == f"{tmp_path}/labels.npz"
    assert config["noise"]["kind"] == f"file:{tmp_path}/noise.csv"
    assert run_dir(str(tmp_path / "mine.yaml"), options) == config["run_dir"]
