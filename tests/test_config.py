"""Configurations: what wins over what, how values are read, how mistakes are reported."""

import math
import shlex
from pathlib import Path

import pytest
import yaml

from experiment import SCHEMAS
from utils.build import fits
from utils.command_line import parse
from utils.config import complete, differences, load, resolve
from utils.errors import UserError, unknown
from utils.params_file import Loader, merge, parse_override

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


def test_an_argument_may_be_called_as_a_section_is():
    loss = {"name": "CoTeaching", "schedule": "paper"}
    resolved = config(
        "loss=CoTeaching", "loss.schedule=paper", "schedule=StepLR", "schedule.step_size=9"
    )
    assert (resolved["loss"], resolved["schedule"]) == (loss, {"name": "StepLR", "step_size": 9})
    rows = {"by_fraction": {0.4: {"loss": loss, "schedule": "ExponentialLR"}}}
    assert merge({}, rows)["by_fraction"][0.4] == {
        "loss": loss,
        "schedule": {"name": "ExponentialLR"},
    }


def test_noise_seed_and_run_directory_follow():
    assert config("seed=7")["noise"]["seed"] == 7
    assert config("seed=7", "noise.seed=1")["noise"]["seed"] == 1
    assert config("seed=7")["run_dir"] == "runs/digits/discrimloss/symmetric-0.4/seed7"
    assert config("noise=none")["run_dir"] == "runs/digits/discrimloss/none/seed1"
    assert config("noise=none")["noise"]["fraction"] == 0
    for folder in ("mnist", "mnist_mlp", "mnist_cnn9"):
        resolved = load(
            f"params/{folder}/gce.yaml", ["noise.kind=pair", "noise.fraction=0.4"], SCHEMAS
        )
        assert resolved["run_dir"] == f"runs/{folder}/gce/pair-0.4/seed1"
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
        (["optimizer.learning_rate=0.1"], "did you mean 'lr'"),
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
        (
            ["params/digits/plain.yaml", "optimizer.lr=-1"],
            "optimizer.lr must be at least 0, got -1",
        ),
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
        arguments = [*arguments, f"run_dir={tmp_path}/deep/run"]
    code = main.main(arguments)
    stderr = capsys.readouterr().err
    assert code == 2
    assert stderr.startswith("error: ")
    assert message in stderr
    # so that the corrected command meets nothing in its way
    assert not list(tmp_path.iterdir())


def test_a_kind_of_noise_that_is_refused_makes_no_folder_elsewhere(tmp_path, monkeypatch, capsys):
    import main

    params = Path(DIGITS).resolve()
    work = tmp_path / "a/b"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    assert main.main([str(params), "noise.kind=../../../x"]) == 2
    assert "noise.kind" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.name != "b"] == [tmp_path / "a"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a/set #2", "a/set #2"),
        ("exp: 1", "exp: 1"),
        ("2024-01-01", "2024-01-01"),
        ("2020-99-99", "2020-99-99"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("0b_", "0b_"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("on", "on"),
        ("no", "no"),
        ("[half", "[half"),
        ("&a *b", "&a *b"),
        ("! x", "! x"),
        ("'on'", "on"),
        (" 7 ", 7),
        ("[1, 2]", [1, 2]),
        ("{name: GCE, q: 0.5}", {"name": "GCE", "q": 0.5}),
        ("", None),
        (".nan", pytest.approx(math.nan, nan_ok=True)),
        ("9" * 5000, math.inf),
    ],
)
def test_a_value_of_the_command_line_is_a_text_as_it_stands_unless_it_is_plainly_more(text, value):
    assert parse_override(f"a.b={text}") == {"a": {"b": value}}


def test_keys_that_take_a_text_take_it_literally():
    folder = "params/folder/plain.yaml"
    for text in ("2024", "true", "1e3", "on", "010", "/data/set #2", "5%", "[1]"):
        overrides = (f"dataset.root={text}", f"run_dir={text}")
        resolved = config(*overrides, path=folder)
        assert (resolved["dataset"]["root"], resolved["run_dir"]) == (text, text)
        assert complete(resolve(folder, list(overrides)), folder)["run_dir"] == text
    assert config("dataset.root=null", path=folder)["dataset"]["root"] is None
    assert config("dataset.root='null'", path=folder)["dataset"]["root"] == "null"
    with pytest.raises(UserError, match="seed must be a whole number, got '010'"):
        config("seed=010")


def test_lengths_may_be_a_share_of_the_epochs(tmp_path):
    path = tmp_path / "relative.yaml"
    path.write_text(
        "epochs: 20\n"
        "loss: {name: DiscrimLoss, q: 50% of epochs, suppression_epochs: 12.5% of epochs}\n"
        "schedule: {name: MultiStepLR, milestones: [50% of epochs, 75 % of epochs]}\n"
    )
    resolved = config(path=path)
    assert (resolved["loss"]["q"], resolved["loss"]["suppression_epochs"]) == (10, 3)
    assert resolved["schedule"]["milestones"] == [10, 15]
    resolved = config("epochs=5", path=path)
    assert (resolved["loss"]["q"], resolved["schedule"]["milestones"]) == (3, [3, 4])
    cosine = ("schedule=CosineAnnealingLR", "schedule.T_max=100% of epochs")
    assert config("epochs=7", *cosine, path=path)["schedule"]["T_max"] == 7
    with pytest.raises(UserError, match=r"loss\.q must be a number, got '50% of steps'"):
        config("loss.q=50% of steps", path=path)
    keys = r"loss\.q, loss\.suppression_epochs, schedule\.milestones"
    with pytest.raises(UserError, match=f"a number for {keys}"):  # epochs of the method are chunks
        config("chunk_steps=100", path=path)


def test_rows_by_fraction_inherit(tmp_path, capsys):
    base, child = tmp_path / "base.yaml", tmp_path / "child.yaml"
    base.write_text(
        "loss: {name: DiscrimLoss}\n"
        "by_fraction: {0.2: {loss: {q: 3, a: 0.1}}, 0.4: {loss: {q: 4, a: 0.2, p: 2}}}\n"
    )

    def loss(row, *overrides):
        child.write_text(f"base: base.yaml\nby_fraction: {{{row}}}\n")
        return config("noise.fraction=0.3", *overrides, path=child)["loss"]

    full = {"name": "DiscrimLoss", "q": 5, "a": 0.2, "p": 2}
    assert loss("0.3: {like: 0.4, loss: {q: 5}}") == full
    assert loss("default: {loss: {q: 1, a: 0.2, p: 2}}, 0.3: {loss: {q: 5}}") == full
    assert loss("default: {loss: {q: 5, a: 0.2, p: 2}}") == full
    # what neither a row nor the rest of the file gives is named
    assert loss("0.3: {loss: {q: 5}}") == {"name": "DiscrimLoss", "q": 5}
    parse([str(child), "noise.fraction=0.3"], "", SCHEMAS)
    assert "without loss.a, loss.p, which others have" in capsys.readouterr().out
    parse([str(child), "noise.fraction=0.3", "loss.a=1", "loss.p=1"], "", SCHEMAS)
    parse([str(child), "noise.fraction=0.4"], "", SCHEMAS)
    assert "which others have" not in capsys.readouterr().out
    # the command line, or by_fraction=null, stand in for a row
    given = ("loss.q=5", "loss.a=0.2", "loss.p=2")
    assert loss("0.6: {}", *given) == full
    assert loss("0.6: {}", "by_fraction=null") == {"name": "DiscrimLoss"}
    with pytest.raises(UserError, match=r"got 0.3: .* give loss.p on the command line"):
        loss("0.6: {}", *given[:2])
    for like in ("0.9", "0.3", "nothing"):
        with pytest.raises(UserError, match="is no other row of it"):
            loss(f"0.3: {{like: {like}}}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("loss: " + "{a: " * 1500 + "1" + "}" * 1500, "sections in more than 20 others"),
        ("loss: " + "{a: " * 30 + "1" + "}" * 30, "sections in more than 20 others"),
        (
            "a: &a [1, 2]\n"
            + "".join(
                f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
                for old, new in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "more than 10,000 values",
        ),
        ("a: &a [*a]", "sections in more than 20 others"),
        ("epochs: !!int 0b_", "is not valid YAML"),
        ("seed: !!timestamp 2020-99-99", "is not valid YAML"),
        ("# " + "x" * 1_000_001, "has more than 1,000,000 bytes"),
        (b"# caf\xe9\nepochs: 1\n", "is not encoded in UTF-8"),
        ("optimizer: {lr: .nan}", "optimizer.lr must be finite, got nan"),
        ("optimizer: {lr: " + "9" * 400 + "}", "optimizer.lr must be finite, got inf"),
        ("epochs: " + "9" * 30, "epochs must be finite, got a whole number beyond 2"),
        ("clip_norm: .inf", "clip_norm must be finite"),
        ("model: {name: mlp, hidden: [8, .inf]}", "model.hidden must be finite"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it_or_its_key(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        config(path=path)
    assert message in str(error.value)
    assert "bad.yaml" in str(error.value) or "must be" in str(error.value)


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
    assert differences(first, first | {"label": "another name"}) == []
    recording = config("record_losses=true")
    assert differences(older, recording) == ["record_losses: False before, True now"]


def test_a_wrong_number_of_epochs_is_one_mistake():
    """Not also one of each key that is given as a share of them."""
    with pytest.raises(UserError) as caught:
        config("epochs=three", path="params/folder/discrimloss.yaml")
    assert str(caught.value) == "epochs must be a whole number, got 'three'"


def test_the_command_that_records_a_history_is_of_the_same_data(tmp_path):
    options = [f"dataset.root={tmp_path}/my photos", "noise.kind=none", "loss=Plain", "seed=3"]
    with pytest.raises(FileNotFoundError) as caught:
        parse(["params/folder/rsl.yaml", *options, "dataset.selection.beta=0.1"], "", SCHEMAS)
    (command,) = (line for line in str(caught.value).splitlines() if "python main.py" in line)
    words = shlex.split(command)
    assert words[:3] == ["python", "main.py", "params/folder/plain.yaml"]
    assert words[-1] == options[0] and not any("selection" in word for word in words)
    recorded = load(words[2], words[3:], SCHEMAS)
    assert recorded["dataset"]["root"] == f"{tmp_path}/my photos" and recorded["seed"] == 3


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
    assert unknown("key", "xyz", []).endswith("'xyz' is not known (nothing can be set here)")


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
    path = str(tmp_path / "mine.yaml")  # as a sweep knows it
    assert complete(resolve(path, options), path)["run_dir"] == config["run_dir"]


def test_a_folder_lists_its_params_files_with_a_line_each(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["params/mnist"], "manual", SCHEMAS)
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    listed = {line.split()[0] for line in lines}
    files = {str(path) for path in Path("params/mnist").glob("*.yaml")} - {"params/mnist/base.yaml"}
    assert listed == files
    (superloss,) = (line for line in lines if line.startswith("params/mnist/superloss.yaml "))
    assert superloss.endswith("  MNIST, SuperLoss")


@pytest.mark.parametrize("arguments", [[], ["tests"]])
def test_who_names_no_file_is_shown_the_folders(arguments):
    with pytest.raises(UserError, match=r"params/<folder> lists .*: cifar10, .*digits, .*wikihow$"):
        parse(arguments, "manual", SCHEMAS)


def test_help_ends_with_the_folders(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"], "manual", SCHEMAS)
    assert "python main.py params/<folder> lists" in capsys.readouterr().out.splitlines()[-1]
