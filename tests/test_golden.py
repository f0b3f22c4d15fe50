"""Every loss against numeric traces of the reference implementations, which tests/golden holds.

A trace is 48 steps of 16 out of 64 samples: logits, targets and indices, and what the authors'
code, their SparseSGD and their clamp made of them. tests/golden/README.md says where each file
comes from.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from losses import DataParameters, DiscrimLoss, SuperLoss
from losses.discrimloss import suppression_factor
from losses.per_sample import PerSampleParameter
from losses.superloss import confidence
from losses.task import cross_entropy, mse, smooth_l1

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}

DISCRIM = {  # file: (task loss, what differs from the full method)
    "cls_newq_linear": (cross_entropy, {}),
    "cls_newq_linear_wd0": (cross_entropy, {}),
    "cls_newq_sin": (cross_entropy, {}),
    "cls_gak_linear": (cross_entropy, {"threshold": "mean"}),
    "cls_tanh_linear": (cross_entropy, {"threshold": math.log(5)}),
    "cls_fixk_linear": (cross_entropy, {"threshold": math.log(5), "a": 0.0}),
    "cls_wo_es_linear": (cross_entropy, {"suppression_epochs": 0}),
    "cls_wo_ea_linear": (cross_entropy, {"beta": 0.0}),
    "regL1_newq_linear": (smooth_l1, {}),
    "regL2_newq_linear": (mse, {}),
}


def read(name):
    with np.load(GOLDEN / f"{name}.npz") as stored:
        arrays = {
            key: torch.from_numpy(value) if value.ndim else value.item()
            for key, value in stored.items()
        }
    return arrays, json.loads((GOLDEN / f"{name}.json").read_text())


def close(got, expected, what):
    torch.testing.assert_close(
        got.double(), torch.as_tensor(expected).double(), **TOLERANCE, msg=lambda m: f"{what}: {m}"
    )


def discrim_trace(name):
    """Run our DiscrimLoss over a trace; yield each step with its values: name -> (ours, theirs)."""
    arrays, about = read(name)
    hyper, (task_loss, changes) = about["hyper"], DISCRIM[name]
    arguments = {
        "a": hyper["a"],
        "p": hyper["p"],
        "q": hyper["q"],
        "beta": hyper["beta"],
        "rho": hyper["rho"],
        "suppression": about["es_type"],
        "suppression_epochs": hyper["sup_eps"],
        "sigma_lr": hyper["lr_inst"],
        "sigma_momentum": hyper["momentum"],
        "sigma_decay": hyper["wd_inst"],
        "log_sigma_low": hyper["clamp_min"],
        "log_sigma_high": hyper["clamp_max"],
    } | changes
    loss = DiscrimLoss(task_loss, about["N"], **arguments)
    for step in range(len(arrays["logits"])):
        targets, indices = arrays["targets"][step], arrays["indices"][step]
        loss.set_epoch(int(arrays["epoch"][step]))
        output = arrays["logits"][step].clone().requires_grad_()
        log_sigma = loss.log_sigma.value[indices].clone()
        losses = loss(output, targets, indices)
        losses.mean().backward()
        decay = 0.5 * hyper["wd_inst"] * log_sigma.square().sum()
        pairs = {
            "loss_vec": (losses.detach(), arrays["loss_vec"][step]),
            "mean_loss": (losses.mean().detach() + decay, arrays["mean_loss"][step]),
            "grad_logits": (output.grad, arrays["grad_logits"][step]),
            "log_sigma": (loss.log_sigma.value, arrays["log_sigma"][step]),
            "momentum_buf": (loss.log_sigma.velocity, arrays["momentum_buf"][step]),
        }
        if "exp_avg" in arrays and changes.get("beta") != 0:
            pairs["exp_avg"] = (loss.history, arrays["exp_avg"][step])
        pairs["k"] = (loss.threshold, arrays["k"][step])
        yield step, pairs


@pytest.mark.parametrize("name", DISCRIM)
def test_discrimloss_trace(name):
    steps = 0
    for step, pairs in discrim_trace(name):
        for what, (got, expected) in pairs.items():
            close(got, expected, f"{what}, step {step}")
        steps += 1
    assert steps == 48


def test_suppression_and_gamma_tables():
    table = json.loads((GOLDEN / "es_table.json").read_text())
    for shape, rows in table.items():
        for key, values in rows.items():
            length = float(key)
            got = [suppression_factor(shape, epoch, length) for epoch in range(len(values))]
            np.testing.assert_allclose(got, values, rtol=1e-12)
    for key, values in json.loads((GOLDEN / "gamma_table.json").read_text()).items():
        a, p, q = (float(part) for part in key.split(","))
        got = [a * math.tanh(p * (epoch - q)) + a + 1 for epoch in range(len(values))]
        np.testing.assert_allclose(got, values, rtol=1e-6)


def data_parameters_trace(name):
    arrays, about = read(name)
    hyper = about["hyper"]
    loss = DataParameters(
        cross_entropy,
        about["N"],
        about["C"],
        level="both" if hyper["cls"] else "instance",
        instance_lr=hyper["lr_inst_param"],
        instance_decay=hyper["wd_inst_param"],
        class_lr=hyper["lr_class_param"],
        class_decay=hyper["wd_class_param"],
        low=about["clamp_log_min"],
        high=about["clamp_log_max"],
    )
    for step in range(len(arrays["logits"])):
        output = arrays["logits"][step].clone().requires_grad_()
        mean = loss(output, arrays["targets"][step], arrays["indices"][step]).mean()
        mean.backward()
        pairs = {
            "loss_nowd": (mean.detach(), arrays["loss_nowd"][step]),
            "grad_logits": (output.grad, arrays["grad_logits"][step]),
            "inst_log": (loss.instance.value, arrays["inst_log"][step]),
            "inst_momentum": (loss.instance.velocity, arrays["inst_momentum"][step]),
        }
        if loss.classes is not None:
            pairs |= {
                "class_log": (loss.classes.value, arrays["class_log"][step]),
                "class_momentum": (loss.classes.velocity, arrays["class_momentum"][step]),
            }
        yield step, pairs


@pytest.mark.parametrize("name", ["dataparams_inst", "dataparams_joint"])
def test_data_parameters_trace(name):
    for step, pairs in data_parameters_trace(name):
        for what, (got, expected) in pairs.items():
            close(got, expected, f"{what}, step {step}")
    assert step == 47


def test_sparse_sgd_trace():
    arrays, about = read("sparse_sgd_mom0.9_skip")
    table = PerSampleParameter(
        16, init=0.0, lr=about["lr"], momentum=about["momentum"], low=-math.inf, high=math.inf
    )
    table.value.copy_(arrays["p0"])
    for step, grad in enumerate(arrays["grads"]):
        drawn = torch.randperm(16)[: 12 if step % 2 else 16]
        drawn = torch.cat([drawn, grad.nonzero().squeeze(1)]).unique()  # the others have gradient 0
        table.step(drawn, grad[drawn])
        close(table.value, arrays["params"][step], "value")
        close(table.velocity, arrays["momentum_buf"][step], "velocity")


def test_superloss_sigma_and_gradient():
    arrays, about = read("superloss_taulog10_lam1.0")
    excess = (arrays["losses"].double() - about["tau"]) / about["lam"]
    sigma, oracle = confidence(excess), arrays["sigma_f64"]
    distance = (excess + 2 / math.e).abs()
    relative = ((sigma - oracle) / oracle).abs()
    assert torch.isfinite(sigma).all()
    assert relative[distance > 1e-6].max() < 1e-6 and relative.max() < 5e-4

    loss = SuperLoss(cross_entropy, tau=about["tau"], lam=about["lam"])
    output = arrays["logits"].clone().requires_grad_()
    losses = loss(output, arrays["targets"], torch.arange(256))
    losses.mean().backward()
    close(losses.detach(), arrays["fwd_loss"], "loss")
    close(output.grad, arrays["fwd_grad_logits"], "gradient")
