"""The published numbers in params/: each as its authors wrote it, to the last digit."""

import math

import pytest

from experiment import SCHEMAS
from utils.config import load

# The best trials that the DiscrimLoss authors recorded. On the CIFARs, several rates share a point
# of their search.
KEYS = ("a", "p", "q", "suppression_epochs", "sigma_lr", "sigma_decay", "log_sigma_low")
# fmt: off
EARLY = (0.2739100024784782, 0.5441169600504865, 60, 3,
         2.609431898226351, 4.700959910367085e-33, 0.07855390412654754)
LATE = (0.25328447720401703, 1.9237901296528157, 81, 4,
        0.08079318881173664, 5.194121605858698e-77, 0.5610712995897812)
DISCRIMLOSS = {
    ("mnist", 0.0): (0.3481373902258772, 1.5647469067139619, 12, 2,
                     0.08748956163241468, 1.766547972533373e-76, 0.11772038762050713),
    ("mnist", 0.2): (0.49715297021340354, 1.0476613069946343, 2, 2,
                     9.999266836439638, 0.008211168182865785, 0.15321363773562724),
    ("mnist", 0.4): (0.10127790834175762, 0.9656059577509333, 18, 2,
                     8.263942227587771, 6.082355258437495e-45, 0.13834381625382589),
    ("mnist", 0.6): (0.10128621307952766, 0.6060078099239783, 16, 2,
                     0.40745928432335543, 4.738939507973669e-22, 0.12006778215717435),
    ("mnist", 0.8): (0.12140641880545722, 1.1983945276780459, 14, 2,
                     0.10294118751284516, 0.09382047709994128, 0.1690132861949647),
    ("cifar10", 0.0): LATE,
    ("cifar10", 0.2): EARLY,
    ("cifar10", 0.4): EARLY,
    ("cifar10", 0.6): EARLY,
    ("cifar10", 0.8): LATE,
    ("cifar100", 0.0): LATE,
    ("cifar100", 0.2): LATE,
    ("cifar100", 0.4): EARLY,
    ("cifar100", 0.6): (0.37805822671098877, 2.253292140418102, 75, 2,
                        8.174786595611666, 1.80652927292908e-48, 0.05546256877970612),
}
# fmt: on
DATASETS = ("mnist", "cifar10", "cifar100")
# All but gradient_rescaling, which follows papers with other recipes.
METHODS = ("plain", "discrimloss", "superloss", "data_parameters", "gce")
SGD = {"name": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def resolved(dataset, method, *overrides):
    return load(f"params/{dataset}/{method}.yaml", list(overrides), SCHEMAS)


@pytest.mark.parametrize(("dataset", "fraction"), DISCRIMLOSS)
def test_discrimloss_is_as_its_authors_searched_it(dataset, fraction):
    config = resolved(dataset, "discrimloss", f"noise.fraction={fraction}")
    published = dict(zip(KEYS, DISCRIMLOSS[dataset, fraction], strict=True))
    assert config["loss"] == {"name": "DiscrimLoss"} | published
    assert config["noise"]["fraction"] == fraction


def test_discrimloss_has_no_row_where_its_authors_left_none():
    with pytest.raises(ValueError, match=r"0\.0, 0\.2, 0\.4, 0\.6, got 0\.8"):
        resolved("cifar100", "discrimloss", "noise.fraction=0.8")


@pytest.mark.parametrize(
    ("dataset", "tau", "lam"),
    [("mnist", 0.5, 1.0), ("cifar10", math.log(10), 1.0), ("cifar100", math.log(100), 0.25)],
)
def test_superloss_is_as_its_authors_set_it(dataset, tau, lam):
    loss = resolved(dataset, "superloss")["loss"]
    assert (loss["name"], loss["lam"]) == ("SuperLoss", lam)
    assert loss["tau"] == pytest.approx(tau, rel=1e-12)


@pytest.mark.parametrize("dataset", DATASETS)
def test_data_parameters_and_gce_are_as_their_authors_set_them(dataset):
    assert resolved(dataset, "data_parameters")["loss"] == {
        "name": "DataParameters",
        "level": "instance",
        "instance_lr": 0.2,
        "instance_init": 1.0,
        "instance_decay": 0.0,
    }
    assert resolved(dataset, "gce")["loss"] == {"name": "GCE", "q": 0.7}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_method_trains_by_the_same_recipe(dataset, method):
    config = resolved(dataset, method)
    assert config["dataset"]["name"] == dataset and config["noise"]["kind"] == "permute"
    assert config["optimizer"] == SGD and config["batch_size"] == 128
    if dataset == "mnist":
        model, epochs, schedule = "lenet", 20, None
    else:
        model, epochs = "wide_resnet28_10", 120
        schedule = {"name": "MultiStepLR", "milestones": [80, 100], "gamma": 0.1}
    assert config["model"] == {"name": model}
    assert config["epochs"] == epochs and config["schedule"] == schedule


@pytest.mark.parametrize(("dataset", "seed"), [("cifar10", 0), ("cifar100", 20)])
def test_rsl_is_as_its_authors_set_it(dataset, seed):
    schedule = {"name": "MultiStepLR", "milestones": [60, 120, 160], "gamma": 0.02}
    for method in ("rsl_record", "rsl"):
        config = resolved(dataset, method)
        assert config["optimizer"] == SGD and config["schedule"] == schedule
        assert config["batch_size"] == 128 and config["epochs"] == 200
        assert config["loss"] == {"name": "Plain"}
        assert config["record_losses"] == (method == "rsl_record")
        assert config["augment_recording"] and "padding_mode" not in config["dataset"]
    for method in ("rsl_record", "rsl", "rsl_mixmatch"):
        config = resolved(dataset, method)
        assert config["model"] == {"name": "wide_resnet28_2"} and config["noise"]["seed"] == seed
        held_out = {key: value for key, value in config["validation"].items() if value is not None}
        assert held_out == {"fraction": 0.1, "clean": True}
    for method in ("rsl", "rsl_mixmatch"):
        selection = resolved(dataset, method)["dataset"]["selection"]
        assert selection.pop("history").startswith(f"runs/{dataset}/rsl_record/pair-0.4/seed1")
        assert selection == {
            "criterion": "mean",
            "per": "class",
            "beta": 0.2,
            "gamma_index": 1,
            "kappa": -math.log(0.7),
        }


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_weighted_mixmatch_is_as_its_authors_set_it(dataset):
    config = resolved(dataset, "rsl_mixmatch")
    assert config["loss"] == {
        "name": "MixMatch",
        "num_views": 2,
        "epoch_steps": 1024,
        "temperature": 0.5,
        "alpha": 0.75,
        "unlabelled_weight": 75.0,
        "ema_decay": 0.999,
        "parameter_decay": 4e-5,
    }
    assert config["optimizer"] == {"name": "Adam", "lr": 0.002} and config["schedule"] is None
    assert config["batch_size"] == 64 and config["epochs"] == 500
    assert config["dataset"]["padding_mode"] == "reflect"
    assert config["loss"]["parameter_decay"] == pytest.approx(0.02 * config["optimizer"]["lr"])


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_selfie_is_as_its_authors_set_it(dataset):
    config = resolved(dataset, "selfie")
    assert config["loss"] == {"name": "SELFIE", "warm_up": 25, "q": 15, "eps": 0.05}
    assert config["optimizer"] == SGD | {"nesterov": True}
    assert config["schedule"] == {"name": "MultiStepLR", "milestones": [50, 75], "gamma": 0.2}
    assert config["epochs"] == 100 and config["batch_size"] == 128
    assert config["dataset"]["augment"] is False


@pytest.mark.parametrize(
    ("fraction", "lr", "alpha", "beta"), [(0.7, 0.08, 1.2, 0.8), (0.4, 0.03, 0.8, 0.4)]
)
def test_joint_optimization_is_as_its_authors_set_it(fraction, lr, alpha, beta):
    config = resolved("cifar10", "joint_optimization", f"noise.fraction={fraction}")
    loss = {"name": "JointOptimization", "begin": 70, "window": 10}
    assert config["loss"] == loss | {"alpha": alpha, "beta": beta}
    assert config["optimizer"] == SGD | {"lr": lr, "weight_decay": 1e-4}
    assert config["epochs"] == 200 and config["schedule"] is None and config["batch_size"] == 128


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_both_steps_of_joint_optimization_fit_and_are_as_their_authors_set_them(dataset):
    first, second = (resolved(dataset, f"joint_optimization{suffix}") for suffix in ("", "_step2"))
    assert all(first[key] == second[key] for key in ("dataset", "noise", "model", "validation"))
    assert second["optimizer"] == SGD | {"lr": 0.2, "weight_decay": 1e-4}
    assert second["schedule"] == {"name": "MultiStepLR", "milestones": [40, 80], "gamma": 0.1}
    assert second["epochs"] == 120 and second["loss"] == {"name": "Plain"}
    defaults = resolved(dataset, "joint_optimization", "noise.fraction=0.2")
    assert (defaults["loss"]["alpha"], defaults["loss"]["beta"]) == (1.0, 0.5)
    assert defaults["optimizer"]["lr"] == 0.1
