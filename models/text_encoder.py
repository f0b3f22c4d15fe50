"""A pretrained language model with a new head, for classes or for multiple choice."""

import inspect
from typing import Literal

from torch import Tensor, nn

from utils.errors import UserError
from utils.pretrained import load_pretrained, mean_of_tokens


def text_encoder(
    num_outputs: int,
    *,
    path: str = "bert-base-uncased",
    choices: bool = False,
    pooling: Literal["pooler", "mean", "first"] = "pooler",
    dropout: float | None = None,
) -> nn.Module:
    """Encoder, pooling, dropout and a linear head.

    Tokens [B, 2, L] -> [B, num_outputs], or, if an input is C choices, [B, C, 2, L] -> [B, C]. The
    two rows of a text are token numbers and token types (segments), padded at the end with the
    padding token of the encoder. Each choice is scored by itself, all with the same head of one
    output, and the network chooses the highest score. The head is in torch's default
    initialisation. bert-base-uncased has 109,482,240 parameters.

    Args:
        path: folder or hub name of a model of BERT's kind, which has a padding token and reads all
            positions at once.
        choices: whether an input is several texts, of which one is right.
        pooling: "pooler", the encoder's own, as BERT does for classification and multiple choice;
            "mean" of all tokens, for sentence encoders; or "first", the state of the first token.
        dropout: before the head; None for that of the encoder's configuration.

    Raises:
        FileNotFoundError: there is no such model.
        UserError: transformers is not installed, or the model has no padding token, or not this
            pooling.
    """
    encoder = load_pretrained("AutoModel", path).float()
    if pooling == "pooler" and getattr(encoder, "pooler", None) is None:
        raise UserError(f"{path} has no pooler: use pooling mean or first")
    if pooling != "pooler" and getattr(encoder, "pooler", None) is not None:
        encoder.pooler.requires_grad_(False)  # unused: several processes would wait for a gradient
    padding = load_pretrained("AutoTokenizer", path).pad_token_id
    if padding is None:
        raise UserError(f"{path} has no padding token, by which a text's end is known")
    if dropout is None:
        dropout = getattr(encoder.config, "hidden_dropout_prob", 0.1)
    return TextEncoder(encoder, padding, 1 if choices else num_outputs, choices, pooling, dropout)


class TextEncoder(nn.Module):
    """An encoder and its head; the arguments are those of text_encoder."""

    def __init__(
        self,
        encoder: nn.Module,
        padding: int,
        num_outputs: int,
        choices: bool,
        pooling: str,
        dropout: float,
    ):
        super().__init__()
        self.encoder, self.padding = encoder, padding
        self.choices, self.pooling, self.dropout = choices, pooling, nn.Dropout(dropout)
        self.head = nn.Linear(encoder.config.hidden_size, num_outputs)
        takes_types = "token_type_ids" in inspect.signature(encoder.forward).parameters
        self.has_types = takes_types and getattr(encoder.config, "type_vocab_size", 0) > 1

    def forward(self, tokens: Tensor) -> Tensor:
        if self.choices:
            return self._score(tokens.flatten(0, 1)).view(tokens.shape[:2])
        return self._score(tokens)

    def _score(self, tokens):
        if tokens.device.type == "cpu":  # on a GPU to look at the lengths would stall every step
            used = (tokens[:, 0] != self.padding).any(0).nonzero()
            tokens = tokens[:, :, used.min() : used.max() + 1] if len(used) else tokens
        mask = tokens[:, 0] != self.padding
        types = {"token_type_ids": tokens[:, 1].long()} if self.has_types else {}
        encoded = self.encoder(input_ids=tokens[:, 0].long(), attention_mask=mask.long(), **types)
        if self.pooling == "pooler":
            pooled = encoded.pooler_output
        elif self.pooling == "first":
            pooled = encoded.last_hidden_state[:, 0]
        else:
            pooled = mean_of_tokens(encoded.last_hidden_state, mask)
        return self.head(self.dropout(pooled))
