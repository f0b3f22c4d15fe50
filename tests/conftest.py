"""Fixtures that several test files share."""

import os
import shutil

import pytest
import torch

import main
from utils.report.__main__ import main as report

# For tests of a GPU with deterministic=true: cuBLAS reads it once, when it is used first.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# The tests' networks are too small to share, and on two busy cores spinning threads only wait.
torch.set_num_threads(1)

TINY = ["features=null", "model=mlp", "model.hidden=[16]", "model.batch_norm=false"]
TINY += ["epochs=3", "threads=1", "device=cpu"]


@pytest.fixture
def run(tmp_path, capsys):
    """Starts a tiny run on digits: (exit code, run directory, standard output, standard error)."""

    def call(*overrides, params="params/digits/discrimloss.yaml", name="run"):
        directory = tmp_path / name
        capsys.readouterr()
        code = main.main([params, *TINY, f"run_dir={directory}", *overrides])
        printed = capsys.readouterr()
        return code, directory, printed.out, printed.err

    return call


@pytest.fixture
def run_report(capsys):
    """run_report(*arguments) -> what the command prints, and what it complains of."""

    def call(*arguments, code=0):
        capsys.readouterr()
        try:
            returned = report([str(argument) for argument in arguments])
        except SystemExit as error:  # of argparse
            returned = error.code
        printed = capsys.readouterr()
        assert returned == code, printed.err
        return printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A window of Chromium, 1,300 pixels wide, without a screen; ``downloads``: its folder."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("there is no chromium with its chromium-driver")
    from selenium import webdriver

    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1300,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    settings = {"behavior": "allow", "downloadPath": str(downloads)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", settings)
    browser.downloads = downloads
    yield browser
    browser.quit()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A folder like those of the Hugging Face hub: a BERT with 32 units and random weights.

    Its tokenizer knows the letters and some words.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    continued = [f"##{letter}" for letter in letters]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [*special, *letters, *continued, "cut", "wash", "the"]
    vocabulary = {word: position for position, word in enumerate(words)}

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    fast_tokenizer.save_pretrained(folder)

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)
