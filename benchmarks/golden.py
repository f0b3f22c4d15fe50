"""How far our losses are from the traces of the reference implementations, and SuperLoss's sigma from float64.

    python -m benchmarks.golden

The tolerance of the tests is |difference| <= 2e-5 + 2e-5 |reference|; 1 in the last column would be at its edge.
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
    return [{"trace": name, "quantity": what, "largest difference": difference, "share of the tolerance": share}
            for what, (share, difference) in worst.items()]


if __name__ == "__main__":
    rows = [row for name in DISCRIM for row in compare(name, discrim_trace(name))]
    rows += [row for name in ("dataparams_inst", "dataparams_joint") for row in compare(name, data_parameters_trace(name))]
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.2g}"))

    arrays, about = read("superloss_taulog10_lam1.0")
    excess = (arrays["losses"].double() - about["tau"]) / about["lam"]
    relative = ((confidence(excess) - arrays["sigma_f64"]) / arrays["sigma_f64"]).abs()
    distance = (excess + 2 / math.e).abs()
    print("\nSuperLoss's sigma against float64, relative: "
          f"{relative[distance > 1e-6].max():.1e} away from the branch point, {relative.max():.1e} anywhere")
