"""One thread.

The tests' networks are too small to share, and two busy cores make spinning threads wait for each
other.
"""

import pytest
import torch

import main

torch.set_num_threads(1)

TINY = ["model=mlp", "model.hidden=[16]", "epochs=3", "threads=1", "device=cpu"]


@pytest.fixture
def run(tmp_path, capsys):
    """run(*overrides, params=..., name=...) -> (exit code, run directory, printed, complaints) of a
    tiny run on digits.
    """

    def call(*overrides, params="params/digits/discrimloss.yaml", name="run"):
        directory = tmp_path / name
        capsys.readouterr()
        code = main.main([params, *TINY, f"run_dir={directory}", *overrides])
        printed = capsys.readouterr()
        return code, directory, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A folder as those of the hub.

    A BERT of 32 units and random weights, and a tokenizer of letters and some words.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *letters,
        *(f"##{letter}" for letter in letters),
        "cut",
        "wash",
        "the",
    ]
    number = {word: position for position, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(number, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=128,
            pad_token_id=0,
        )
    ).save_pretrained(folder)
    return str(folder)
