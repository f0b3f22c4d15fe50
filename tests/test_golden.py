"""Every loss against numeric traces of the reference implementations, which are in tests/golden.

A trace is 48 steps of 16 out of 64 samples: logits, targets and indices, and what the authors'
code, their SparseSGD and their clamp made of them. tests/golden/README.md says where each file
comes from.
"""

import json
import math

import numpy as np
import pytest
import torch

from losses import SuperLoss
from losses.discrimloss import suppression_factor
from losses.per_sample import PerSampleParameter
from losses.superloss import confidence
from losses.task import cross_entropy
from tests.fixtures import (
    DISCRIM_TRACES,
    GOLDEN,
    data_parameters_trace,
    discrim_trace,
    read_trace,
)

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def close(got, expected, what):
    torch.testing.assert_close(
        got.double(), torch.as_tensor(expected).double(), **TOLERANCE, msg=lambda m: f"{what}: {m}"
    )


@pytest.mark.parametrize("name", DISCRIM_TRACES)
def test_discrimloss_trace(name):
    steps = 0
    for step, pairs in discrim_trace(name):
        for what, (got, expected) in pairs.items():
            if expected is not None:
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


@pytest.mark.parametrize("name", ["dataparams_inst", "dataparams_joint"])
def test_data_parameters_trace(name):
    for step, pairs in data_parameters_trace(name):
        for what, (got, expected) in pairs.items():
            close(got, expected, f"{what}, step {step}")
    assert step == 47


def test_sparse_sgd_trace():
    arrays, about = read_trace("sparse_sgd_mom0.9_skip")
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
    arrays, about = read_trace("superloss_taulog10_lam1.0")
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
