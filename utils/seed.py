"""Seeds: every random number of a run follows from its one seed."""

import torch


def derive(seed: int, *parts: int) -> int:
    """A 63-bit seed for one purpose, e.g. an epoch, from the seed of the run.

    Neighbouring arguments give unrelated seeds.
    """
    state = 0x9E3779B97F4A7C15
    for number in (seed, *parts):  # the finaliser of splitmix64, once per number
        state = (state ^ number) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state >> 1


def seed_everything(seed: int, *parts: int):
    """Seed PyTorch's generators on all devices with ``derive(seed, *parts)``.

    Training uses neither NumPy's generators nor Python's.
    """
    torch.manual_seed(derive(seed, *parts))


def rng_state() -> dict:
    """State of PyTorch's generators, from which an interrupted epoch goes on as if undisturbed."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # a run on the CPU is not to start the GPU
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng_state(state: dict):
    """Put the generators back into a state that ``rng_state`` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
