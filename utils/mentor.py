"""Fit a mentor to the recorded losses of samples whose truth is known, for MentorNet DD.

    python main.py params/digits/mentornet.yaml record_losses=true trusted.count=100 \\
        trusted.train=given
    python -m utils.mentor runs/digits/mentornet/symmetric-0.4/seed1 mentor.npz
    python main.py params/digits/mentornet_dd.yaml loss.mentor=mentor.npz

The first run trains on all samples with their given labels, and writes down which are trusted. The
mentor learns from their losses which of these labels are right. The last run takes the trusted
samples off what it trains on, and lets the mentor weigh the others. The first is of MentorNet PD,
since the losses of cross-entropy, which follows wrong labels, are larger than those that the mentor
will meet: where all that it meets are small, it may have learned nothing.

The authors (github.com/google/mentornet) take percentiles of all losses together, not of each
epoch's, and fit another network by 30,000 steps on batches of 32, with a rate of 0.1 that falls by
a tenth every 1,000; ours has 2,000 steps of Adam on batches of 256.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from losses.mentor import Mentor
from utils.errors import UserError
from utils.escapes import printable
from utils.files import map_array, read_arrays, write_arrays

PERCENTILES = (40, 50, 60, 75, 80, 90)  # of the losses, each in its turn for m
STEPS, BATCH = 2000, 256
HELD_OUT = 0.2


def examples(losses: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Features [E, K, P, 3] of ``chosen`` [K] samples, for each epoch and each of PERCENTILES.

    Args:
        losses: [E, N], NaN where nothing was recorded; percentiles are those of all that was.
    """
    num_epochs = len(losses)
    m = np.nanpercentile(losses, PERCENTILES, axis=1).T[:, None, :]
    own = np.broadcast_to(losses[:, chosen, None], (num_epochs, len(chosen), len(PERCENTILES)))
    percent = np.minimum(100 * np.arange(1, num_epochs + 1) // num_epochs, 99)
    progress = np.broadcast_to(percent[:, None, None], own.shape)
    return np.stack([own, own - m, progress], axis=3)


def fit(losses: np.ndarray, chosen: np.ndarray, right: np.ndarray, seed: int) -> tuple[Mentor, str]:
    """A mentor that was fitted to the losses of the samples ``chosen``, and how good it is.

    A fifth of these samples is held out, which the mentor is judged by. The authors hold out a
    fifth of the rows, among which each sample occurs once an epoch.

    Args:
        losses: [E, N], as recorded.
        chosen: positions [K].
        right: [K] bool, whether their given labels are the true ones.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(chosen))
    num_held_out = int(HELD_OUT * len(order))
    rows = torch.from_numpy(examples(losses, chosen)).float()
    answers = torch.from_numpy(right).float()[None, :, None].expand(rows.shape[:3])
    parts = [
        (rows[:, positions].flatten(0, 2), answers[:, positions].flatten())
        for positions in (order[num_held_out:], order[:num_held_out])
    ]
    mentor, (features, target) = Mentor(), parts[0]
    mentor.mean.copy_(features.mean(0))
    mentor.std.copy_(features.std(0).clamp_min(1e-6))
    optimizer = torch.optim.Adam(mentor.parameters(), lr=0.01)
    for _ in range(STEPS):
        drawn = torch.randint(len(features), (BATCH,))
        loss = F.binary_cross_entropy_with_logits(mentor(features[drawn]), target[drawn])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(mentor.parameters(), 5.0)
        optimizer.step()
    with torch.no_grad():
        held_out, truth = parts[1]
        accuracy = ((mentor(held_out) > 0) == (truth > 0.5)).float().mean()
    quality = (
        f"{len(features):,} rows of {len(order) - num_held_out} samples; of {num_held_out} others "
        f"it takes {100 * accuracy:.1f} % for what they are"
    )
    return mentor.requires_grad_(False), quality


def read_record(run: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses [E, N], trusted samples [K] and whether their given labels are right, of a run.

    Raises UserError or OSError if it has none, or they cannot be read.
    """
    stored = read_arrays(run / "noise.npz")
    if "trusted" not in stored:
        raise UserError(
            f"{run} has no trusted samples: record it with trusted.count=<how many> "
            f"trusted.train=given"
        )
    if not (run / "losses.npy").is_file():
        raise UserError(f"{run} has no losses.npy: record it with record_losses=true")
    losses, chosen = map_array(run / "losses.npy"), stored["trusted"]
    if losses.ndim != 2 or losses.shape[1] != len(stored["given"]):
        raise UserError(f"{run}/losses.npy is not of as many samples as its noise.npz")
    if not np.isfinite(losses[:, chosen]).all():
        raise UserError(
            f"{run} lacks losses of its trusted samples: record it with trusted.train=given, to "
            f"the end"
        )
    right = (stored["given"] == stored["true"])[chosen]
    if right.all() or not right.any():
        raise UserError(
            f"all {len(right)} trusted samples of {run} have {'right' if right.all() else 'wrong'} "
            f"labels, and a mentor learns from both kinds: raise trusted.count"
        )
    return np.asarray(losses), chosen, right


def write_mentor(path: Path, mentor: Mentor):
    """Write a mentor into a .npz file."""
    state = {name: value.numpy(force=True) for name, value in mentor.state_dict().items()}
    write_arrays(path, **state)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="directory of a run with losses.npy")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    parser.add_argument("--seed", type=int, default=0, help="of the fit")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the mentor is too small to be shared
    try:
        if options.out.suffix != ".npz":
            raise UserError(f"the file of a mentor must end in .npz, got {options.out}")
        mentor, quality = fit(*read_record(options.run), seed=options.seed)
        write_mentor(options.out, mentor)
    except (UserError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2
    print(printable(f"{options.out}: {quality}"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
