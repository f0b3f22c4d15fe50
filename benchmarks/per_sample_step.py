"""What the per-sample state costs a step, by the size of the training set: it should not matter.

    python -m benchmarks.per_sample_step --sizes 50000 5000000

Forward in training mode (task loss, state, and the step of the per-sample parameter) and backward, on logits that are
there already; the sizes take turns, and the median of the rounds is printed.
"""

import argparse
import statistics
import time

import pandas as pd
import torch

from losses import DataParameters, DiscrimLoss, Plain
from losses.task import cross_entropy


def seconds_a_step(loss, num_samples: int, batch_size: int, steps: int, num_outputs: int = 10) -> float:
    """Mean time of forward and backward over batches of samples drawn at random."""
    output = torch.randn(batch_size, num_outputs, requires_grad=True)
    target = torch.randint(num_outputs, (batch_size,))
    indices = [torch.randint(num_samples, (batch_size * 2,)).unique()[:batch_size] for _ in range(steps)]
    start = time.perf_counter()
    for index in indices:
        output.grad = None
        loss(output[:len(index)], target[:len(index)], index).mean().backward()
    return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 5_000_000])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="results/per_sample_step.csv")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    methods = {"Plain": lambda size: Plain(cross_entropy), "DiscrimLoss": lambda size: DiscrimLoss(cross_entropy, size),
               "DataParameters": lambda size: DataParameters(cross_entropy, size, 10)}
    rows = []
    for name, make in methods.items():
        built = {size: make(size) for size in options.sizes}
        times = {size: [] for size in options.sizes}
        for round_number in range(options.rounds + 1):
            for size, loss in built.items():
                spent = seconds_a_step(loss, size, options.batch_size, options.steps)
                if round_number:  # the first warms up
                    times[size].append(spent)
        for size in options.sizes:
            rows.append({"loss": name, "N": size, "microseconds a step": 1e6 * statistics.median(times[size]),
                         "lowest": 1e6 * min(times[size]), "highest": 1e6 * max(times[size]),
                         "ratio to the first": statistics.median(times[size]) / statistics.median(times[options.sizes[0]])})
    table = pd.DataFrame(rows).round(2)
    table.to_csv(options.out, index=False)
    print(table.to_string(index=False))
