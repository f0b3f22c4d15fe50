"""The published numbers as data: what each says of itself, and which are held against a run."""

from pathlib import Path

import pandas as pd
import pytest

import losses
import models
from datasets.noise_kinds import KINDS
from experiment import SCHEMAS
from utils.config import load
from utils.params_file import merge
from utils.report import published
from utils.report.identity import identity, method_name
from utils.settings import DEFAULTS

ROOT = Path(__file__).parents[1]
RULES = {"last", "best", "validated", "mean_last_5", "mean_last_10", "epoch 84", "not stated"}


def test_every_number_says_what_it_is_and_where_it_is_from():
    table = published.load()
    key = ["dataset", "noise", "fraction", "method", "parameters", "model", "rule"]
    key += ["value", "paper"]
    assert len(table) == 688 and not table.duplicated(key).any()
    assert set(table.dataset) <= {path.name for path in (ROOT / "params").iterdir()}
    assert set(table["rule"]) <= RULES and set(published.COMPARED) <= RULES
    assert {kind for kind in table.noise if not kind.startswith("human:")} <= {*KINDS, "none"}
    assert set(table.method) <= {*losses.__all__, "RSL", "RSL + MixMatch"}
    assert table.model.isin(models.__all__).mean() > 0.3
    address = r"https://(github\.com/[\w-]+/[\w-]+|arxiv\.org/abs/\d{4}\.\d{5})"
    assert table.source.str.match(address).all()
    accuracy = table[table.metric == "accuracy"]
    percent = accuracy.value.between(1.5, 100)  # not a fraction
    collapsed = accuracy[~percent]
    # at 45 % pair noise it learns the wrong one of two classes
    assert collapsed[["method", "noise", "value"]].values.tolist() == [
        ["ForwardCorrection", "pair_coteaching", 0.24]
    ]
    assert (table["std"].isna() | (table["std"] >= 0)).all()
    for text in table.parameters:
        assert all(part.count("=") == 1 for part in filter(None, text.split("; ")))


def test_numbers_of_the_methods_own_papers():
    """A few, read again from where they are from."""
    table = published.load()
    mnist = table.query(
        "dataset == 'mnist' and fraction == 0.4 and noise == 'permute' and model == 'lenet'"
    )
    protocol = mnist[mnist.parameters.str.startswith("epochs=20")]
    best = protocol.drop_duplicates("method").set_index("method")
    assert best.value.to_dict() == {"Plain": 98.06, "SuperLoss": 98.40, "DiscrimLoss": 98.64}
    assert best.selected.eq("best 5 of at least 20 seeds").all()
    cifar = table.query("dataset == 'cifar10' and fraction == 0.4 and method == 'DiscrimLoss'")
    cifar = cifar.iloc[0]
    assert (cifar.value, cifar["std"], cifar.n) == (92.07, 0.18, 3)


def test_numbers_of_the_methods_with_two_networks():
    """The tables of Co-teaching and JoCoR, of which nothing is from memory."""
    table = published.load()
    papers = table[table["rule"] == "mean_last_10"].groupby("paper")
    assert papers.size().to_dict() == {
        "Co-teaching (Han et al., NeurIPS 2018)": 84,
        "JoCoR (Wei et al., CVPR 2020)": 32,
        "TAkS (Song et al., arXiv 2003.03179)": 48,
        "Vovk et al. (ReScience C 2026)": 2,
    }
    assert not table.confidence.str.contains("memory").any()
    for folder, method, overrides, expected in (
        ("mnist_cnn9", "plain", {}, [56.52]),
        ("mnist_cnn9", "mentornet", {}, [80.88]),
        ("mnist_cnn9", "co_teaching", {}, [87.63, 87.56]),
        ("mnist_cnn9", "co_teaching", {"loss.num_gradual": 5, "loss.exponent": 2}, [87.54]),
        ("mnist_cnn9", "co_teaching", {"loss.forget_rate_scale": 1.25}, [97.89]),
        ("mnist_mlp", "jocor", {}, [96.64, 95.90]),
        ("mnist_mlp", "decoupling", {}, [66.77]),
        ("mnist_mlp", "gce", {}, []),
        ("cifar10", "co_teaching", {}, [74.02]),
        ("cifar10", "co_teaching", {"noise.fraction": 0.2}, [82.32, 82.08, 82.33, 83.02]),
        ("cifar10", "decoupling", {}, [51.49]),
        ("cifar10", "co_teaching_plus", {}, [57.75, 57.65, 60.18]),
        ("cifar100", "co_teaching", {}, [41.37]),
        (
            "cifar100",
            "decoupling",
            {"noise.kind": "pair_coteaching", "noise.fraction": 0.45},
            [26.05],
        ),
    ):
        changes = [f"{key}={value}" for key, value in overrides.items()]
        config = load(f"params/{folder}/{method}.yaml", changes, SCHEMAS)
        cell = identity(config) | {"metric": "accuracy"}
        found = published.matches(table, cell, config)
        assert [number.value for number, different in found if not different] == expected, method


def config_of(**overrides):
    mnist = {"dataset": {"name": "mnist"}, "model": {"name": "lenet"}, "epochs": 20}
    return merge(DEFAULTS, mnist | overrides)


def first(fraction=0.4, kind="permute", **overrides):
    config = config_of(**overrides)
    cell = {
        "dataset": config["dataset"]["name"],
        "noise": kind,
        "fraction": fraction,
        "method": method_name(config),
        "metric": "accuracy",
    }
    for number, different in published.matches(published.load(), cell, config):
        return number.value, different
    return None


def test_a_number_whose_protocol_or_noise_is_not_known_is_not_judged():
    table = published.load()
    for dataset, model, noise_kind, reason in (
        ("cifar10", "resnet34", "symmetric", "a noise whose convention is not stated"),
        ("cifar10", "resnet34", "human:worse", "a protocol that is not known here"),
        ("clothing1m", "resnet50", "none", "model.pretrained=true"),
    ):
        config = config_of(dataset={"name": dataset}, model={"name": model})
        fraction = 0.4 if noise_kind == "symmetric" else 0.0
        cell = {
            "dataset": dataset,
            "noise": noise_kind,
            "fraction": fraction,
            "method": "Plain",
            "metric": "accuracy",
        }
        differences = [
            different
            for number, different in published.matches(table, cell, config)
            if number.model == model
        ]
        assert differences and all(differences)
        assert any(reason in different for different in differences)


def test_the_number_that_is_most_alike_comes_first():
    assert first() == (98.06, [])
    assert first(epochs=30, optimizer={"lr": 0.05}) == (98.36, [])  # the authors' earlier protocol
    assert first(epochs=10) == (98.06, ["epochs=20"])
    assert first(trusted={"count": 100}) == (98.06, ["no trusted samples"])
    assert first(init_from="runs/a") == (98.06, ["no network to begin with"])
    full = {"name": "DiscrimLoss", "suppression_epochs": 2}
    assert first(loss=full) == (98.64, [])
    assert first(loss=full | {"beta": 0.0}) == (98.89, [])
    assert first(loss=full | {"suppression_epochs": 0}) == (98.64, [])
    assert first(loss=full | {"beta": 0.5})[1]
    assert first(loss=full | {"threshold": "mean"})[1]
    assert first(0.3) is None and first(kind="pair") is None
    assert first(0.0, kind="none") == (98.51, [])  # no noise is no noise, by any name


def test_a_file_that_is_not_as_its_columns_say_is_refused(tmp_path):
    table = pd.read_csv(published.PATH, dtype=str, keep_default_na=False)
    for column, value in (
        ("source", "somebody told me"),
        ("fraction", "40"),
        ("value", ""),
        ("metric", "f1"),
        ("rule", ""),
        ("convention", ""),
    ):
        wrong = table.copy()
        wrong.loc[5, column] = value
        wrong.to_csv(tmp_path / "wrong.csv", index=False)
        with pytest.raises(ValueError, match="lines 7 are not as its columns say"):
            published.load(tmp_path / "wrong.csv")
    table.drop(columns="source").to_csv(tmp_path / "wrong.csv", index=False)
    with pytest.raises(ValueError, match="must have the columns dataset, noise"):
        published.load(tmp_path / "wrong.csv")
