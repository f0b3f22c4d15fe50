"""Seeds: every random number of a run follows from its one seed."""

import torch


def derive(seed: int, *parts: int) -> int:
    """A 63-bit seed for one purpose out of the run's seed, e.g.

    Derive(seed, epoch): neighbours give unrelated streams.
    """
    state = 0x9E3779B97F4A7C15
    for number in (seed, *parts):  # the finaliser of splitmix64, once per number
        state = (state ^ number) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1


def seed_everything(seed: int, *parts: int):
    """Seed PyTorch's generators (all devices), e.g.

    With (seed, epoch). NumPy's and Python's are not used in training.
    """
    torch.manual_seed(derive(seed, *parts))


def rng_state() -> dict:
    """State of PyTorch's generators, to go on in the middle of an epoch as if nothing had happened."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # not where a run on the CPU has left the GPU alone
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng_state(state: dict):
    """Undo everything since ``rng_state()``."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
