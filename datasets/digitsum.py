"""DigitSum: generated sequences of digits and their sum, short ones to train, long ones to test."""

import random

import torch

from datasets.base import Dataset, Split

PADDING = 10  # the token after a sequence's end
LENGTHS = range(2, 21)


def digitsum(generator_seed: int = 0) -> Dataset:
    """18,100 training sequences of 2 to 20 digits, whose sum is the target; others of 20 digits.

    200 of those are to validate and 200 to test. Of each length 1,000 different sequences, of
    length 2 all 100, in the order of their length, as the generator of the DiscrimLoss authors has
    it (github.com/tangminji/DiscrimLoss). Inputs are tokens [N, 20] of int32, padded with 10. Their
    mean sum is 51 in training and 90 in the test, so that a network has to go beyond what it has
    seen.

    Args:
        generator_seed: of the sequences, which are the same in every run of a study. The authors'
            is not known, nor are their files.
    """
    generator = random.Random(generator_seed)
    train = [
        sequence
        for length in LENGTHS
        for sequence in _distinct(generator, length, min(1000, 10**length))
    ]
    held_out = _distinct(generator, LENGTHS[-1], 400)
    return Dataset(
        _split(train), _split(held_out[200:]), classes=[], validation=_split(held_out[:200])
    )


def _distinct(generator, length, count):
    sequences = {}  # in the order in which they came
    while len(sequences) < count:
        sequences[tuple(generator.randrange(10) for _ in range(length))] = None
    return list(sequences)


def _split(sequences):
    tokens = torch.full((len(sequences), LENGTHS[-1]), PADDING, dtype=torch.int32)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int32)
    sums = torch.tensor([float(sum(sequence)) for sequence in sequences])
    return Split(tokens, sums, texts=[" ".join(map(str, sequence)) for sequence in sequences])
