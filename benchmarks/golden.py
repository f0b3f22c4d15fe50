"""How far our losses are from the traces of the reference, and SuperLoss's sigma from float64.

    python -m benchmarks.golden            prints, and writes results/golden.csv

The tolerance of the tests is |difference| <= 2e-5 + 2e-5 |reference|; 1 in the last column would be
at its edge.
"""

import math
from collections.abc import Iterable

import pandas as pd
import torch

from losses.superloss import confidence
from tests.fixtures import DISCRIM_TRACES, data_parameters_trace, discrim_trace, read_trace


def compare(name: str, trace: Iterable[tuple[int, dict]]) -> list[dict]:
    """One row for each quantity of a trace: the largest difference over its steps."""
    worst = {}
    for _, pairs in trace:
        for what, (got, expected) in pairs.items():
            if expected is not None:
                got, expected = got.double(), torch.as_tensor(expected).double()
                difference = (got - expected).abs()
                share = (difference / (2e-5 + 2e-5 * expected.abs())).max().item()
                worst[what] = max(worst.get(what, (0, 0)), (share, difference.max().item()))
    return [
        {
            "trace": name,
            "quantity": what,
            "largest difference": difference,
            "share of the tolerance": share,
        }
        for what, (share, difference) in worst.items()
    ]


def compare_sigma() -> list[dict]:
    """SuperLoss's sigma against float64, away from its branch point and anywhere."""
    name = "superloss_taulog10_lam1.0"
    arrays, about = read_trace(name)
    excess = (arrays["losses"].double() - about["tau"]) / about["lam"]
    relative = ((confidence(excess) - arrays["sigma_f64"]) / arrays["sigma_f64"]).abs()
    away = (excess + 2 / math.e).abs() > 1e-6
    return [
        {
            "trace": name,
            "quantity": f"sigma, relative to float64, {where}",
            "largest difference": values.max().item(),
        }
        for where, values in (
            ("away from the branch point", relative[away]),
            ("anywhere", relative),
        )
    ]


def main():
    rows = []
    for name in DISCRIM_TRACES:
        rows += compare(name, discrim_trace(name))
    for name in ("dataparams_inst", "dataparams_joint"):
        rows += compare(name, data_parameters_trace(name))
    table = pd.DataFrame(rows + compare_sigma())
    table.to_csv("results/golden.csv", index=False, float_format="%.3g")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2g}"))


if __name__ == "__main__":
    main()
