"""Pretrained language models from Hugging Face: the only module that imports transformers."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from utils.errors import UserError


def load_pretrained(kind: str, path: str):
    """``transformers.<kind>.from_pretrained(path)``.

    Args:
        kind: AutoTokenizer or AutoModel.
        path: a folder, or a name on the Hugging Face hub. A model that is not in the local cache
            is downloaded to it.

    Raises:
        UserError: transformers is not installed, or the folder cannot be read as such a model.
        FileNotFoundError: there is no such folder, nor can the model be had from cache or hub.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"texts need the package transformers: pip install -r requirements-text.txt ({error})"
        ) from None
    transformers.utils.logging.disable_progress_bar()
    load: Callable = getattr(transformers, kind).from_pretrained
    try:
        return load(path, local_files_only=True)
    except Exception as error:  # of transformers, safetensors or torch, depending on the damage
        if Path(path).is_dir():
            raise UserError(
                f"the encoder {path} cannot be read as a model with its tokenizer ({error})"
            ) from None
    try:
        return load(path)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"the encoder {path} is neither a folder with a model and its tokenizer, nor in the "
            "cache of Hugging Face, nor to be downloaded: set model.path, or dataset.encoder if "
            f"it is not trained, to a folder ({error})"
        ) from None


def mean_of_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Mean [B, D] over the tokens of states [B, L, D] that mask [B, L] marks as no padding."""
    weight = mask.unsqueeze(2).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp_min(1)
