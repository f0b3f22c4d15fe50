"""The mentor of MentorNet DD, which ``python -m utils.mentor`` fits to the losses of a run."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import UserError

UNITS = 20
LARGEST_FILE = 1_000_000  # bytes of an array of it, unpacked


class Mentor(nn.Module):
    """The probability that a label is right, from a loss l, l - m and the progress in percent.

    Three standardised features, 20 units with tanh, a logistic output. The paper's mentor (arXiv
    1712.05055; github.com/google/mentornet) is a bidirectional LSTM of one unit over one step on l
    and l - m, with an embedding of the label, which is always 0, and a frozen random one of the
    progress. Its authors say that the architecture does not matter much; this one is our choice.
    """

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, UNITS), nn.Tanh(), nn.Linear(UNITS, 1))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B] of features [B, 3]."""
        return self.layers((features - self.mean) / self.std).squeeze(1)

    def weights(self, losses: Tensor, excess: Tensor, percent: int) -> Tensor:
        """v [B] in (0, 1)."""
        progress = torch.full_like(losses, percent)
        return self(torch.stack([losses, excess, progress], 1)).sigmoid()


def read_mentor(path: str) -> Mentor:
    """What utils.mentor wrote. Raises UserError if it cannot be read."""
    hint = "make it with python -m utils.mentor <run> <file>.npz"
    if not Path(path).is_file():
        raise UserError(f"mentor={path}: there is no such file; {hint}")
    mentor = Mentor()
    expected = mentor.state_dict()
    try:
        import numpy as np

        with np.load(path, allow_pickle=False) as stored:
            sizes = [stored.zip.getinfo(f"{name}.npy").file_size for name in expected]
            if max(sizes) > LARGEST_FILE:
                raise ValueError(f"its arrays have more than {LARGEST_FILE:,} bytes")
            state = {name: torch.from_numpy(np.asarray(stored[name])).float() for name in expected}
        mentor.load_state_dict(state)
    except Exception as error:  # of NumPy or zipfile, as the damage may be
        reason = str(error).split("\n")[0]
        raise UserError(f"mentor={path} cannot be read as a mentor ({reason}); {hint}") from None
    if not all(value.isfinite().all() for value in state.values()):
        raise UserError(f"mentor={path} holds numbers that are not finite; {hint}")
    return mentor.requires_grad_(False)
