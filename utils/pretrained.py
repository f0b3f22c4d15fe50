"""Pretrained language models, by Hugging Face's transformers, which is imported here and nowhere
else.
"""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from utils.errors import UserError


def load_pretrained(kind: str, path: str):
    """``transformers.<kind>.from_pretrained(path)``, where kind is AutoTokenizer or AutoModel.

    ``path`` is a folder, or a name on the Hugging Face hub: taken from the local cache, and
    downloaded to it if it is not there.

    Raises:
        ValueError: transformers is not installed; a folder that cannot be read as such a model.
        FileNotFoundError: no such folder, nor in the cache, nor to be downloaded.
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
    except Exception as error:  # of transformers, safetensors or torch, as the damage may be
        if Path(path).is_dir():
            raise UserError(
                f"model.path={path} cannot be read as a model with its tokenizer ({error})"
            ) from None
    try:
        return load(path)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"model.path={path} is neither a folder with a model and its tokenizer, nor in the "
            f"cache of "
            f"Hugging Face, nor to be downloaded: name a folder with model.path=<folder> ({error})"
        ) from None


def mean_of_tokens(states: Tensor, mask: Tensor) -> Tensor:
    """Mean [B, D] of the states [B, L, D] of the tokens that are no padding: mask [B, L]."""
    weight = mask.unsqueeze(2).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp_min(1)
