"""The LSTM of the DiscrimLoss authors for DigitSum."""

from typing import Literal

import torch
from torch import Tensor, nn

from utils.errors import UserError


def digitsum_lstm(
    num_outputs: int, *, hidden: int = 256, random_state: Literal["zeros", "authors"] = "zeros"
) -> nn.Module:
    """Embedding and one LSTM layer; a linear layer and ReLU on the state after the last digit.

    Tokens [B, L] -> [B, num_outputs]. Tokens are 0 to 9, and 10 after the end of a sequence.
    529,409 parameters with one output; torch's default initialisation. Like the sums that it
    predicts, the output is not negative: a network whose outputs are all 0 learns no more.

    Args:
        hidden: units of the embedding and of the LSTM.
        random_state: the state before the first digit. "zeros"; or "authors", drawn from N(0, 1)
            for each sequence in every forward pass, evaluation included, as in their code.

    Deviation from the authors' code: on a CPU a batch is computed in order of length, and the input
    of each digit is looked up in a table. That gives what torch's LSTM gives, up to rounding, in
    less than half of the time.

    Raises UserError if hidden is less than 1.
    """
    if hidden < 1:
        raise UserError(f"hidden must be at least 1, got {hidden}")
    return DigitSumLSTM(num_outputs, hidden, random_state)


class DigitSumLSTM(nn.Module):
    """The module of digitsum_lstm, whose arguments it takes."""

    def __init__(self, num_outputs: int, hidden: int, random_state: str):
        super().__init__()
        self.hidden, self.random_state = hidden, random_state
        self.embedding = nn.Embedding(11, hidden)
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, num_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        draw = torch.randn if self.random_state == "authors" else torch.zeros
        state = draw(2, len(tokens), self.hidden, device=tokens.device)
        lengths = (tokens != 10).sum(1)
        run = self._by_length if tokens.device.type == "cpu" else self._padded
        return torch.relu(self.head(run(tokens, lengths, *state)))

    def _padded(self, tokens, lengths, hidden, cell):
        """By torch's LSTM; the padding after a sequence cannot change the state at its end."""
        states, _ = self.lstm(self.embedding(tokens), (hidden.unsqueeze(0), cell.unsqueeze(0)))
        return states[torch.arange(len(tokens), device=tokens.device), lengths - 1]

    def _by_length(self, tokens, lengths, hidden, cell):
        """Longest sequence first, so that at each digit those that go on are the first rows."""
        lstm = self.lstm
        # what each of the 11 tokens adds to the gates
        table = self.embedding.weight @ lstm.weight_ih_l0.t() + lstm.bias_ih_l0 + lstm.bias_hh_l0
        lengths, order = lengths.sort(descending=True, stable=True)
        tokens, hidden, cell = tokens[order].t(), hidden[order], cell[order]
        weight, finished = lstm.weight_hh_l0.t(), []
        for digit in tokens[: lengths[:1].sum()]:
            going_on = int((digit != 10).sum())
            if going_on < len(hidden):
                finished.append(hidden[going_on:])
                hidden, cell = hidden[:going_on], cell[:going_on]
            gates = torch.addmm(table[digit[:going_on].long()], hidden, weight)
            write, keep, content, show = gates.chunk(4, dim=1)
            cell = keep.sigmoid() * cell + write.sigmoid() * content.tanh()
            hidden = show.sigmoid() * cell.tanh()
        return torch.cat([hidden, *reversed(finished)])[order.argsort()]
