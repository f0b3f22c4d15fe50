"""How far our losses are from the traces of the reference implementations, and SuperLoss's sigma
from float64.

    python -m benchmarks.golden            prints, and writes results/golden.csv

The tolerance of the tests is |difference| <= 2e-5 + 2e-5 |reference|; 1 in the last column would be
at its edge.
"""

import math

import pandas as pd
import torch

from losses.superloss import confidence
from tests.test_golden import DISCRIM, data_parameters_trace, discrim_trace, read


def compare(name: str, trace) -> list[dict]:
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


if __name__ == "__main__":
    rows = [row for name in DISCRIM for row in compare(name, discrim_trace(name))]
    rows += [
        row
        for name in ("dataparams_inst", "dataparams_joint")
        for row in compare(name, data_parameters_trace(name))
    ]
    arrays, about = read("superloss_taulog10_lam1.0")
    excess = (arrays["losses"].double() - about["tau"]) / about["lam"]
    relative = ((confidence(excess) - arrays["sigma_f64"]) / arrays["sigma_f64"]).abs()
    distance = (excess + 2 / math.e).abs()
    for where, values in (
        ("away from the branch point", relative[distance > 1e-6]),
        ("anywhere", relative),
    ):
        rows.append(
            {
                "trace": "superloss_taulog10_lam1.0",
                "quantity": f"sigma, relative to float64, {where}",
                "largest difference": values.max().item(),
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv("results/golden.csv", index=False, float_format="%.3g")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2g}"))
