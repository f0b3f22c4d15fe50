"""The keys of a configuration: their types, ranges, defaults and what they mean."""

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from utils.build import AT_LEAST_0, AT_LEAST_1, FRACTION, POSITIVE, SEED, Must, Section
from utils.scores import NAMES

HELD_OUT = Must("lie in [0, 0.9]: more leaves nothing to train on", lambda value: 0 <= value <= 0.9)
AT_LEAST_2 = Must("be at least 2", lambda value: value >= 2)
SCORE = Must(
    f"be one of {', '.join(NAMES)}; null is the method's own, or mean_loss",
    lambda value: value in NAMES,
)
DEVICE = Must(
    "be auto, cpu, cuda or cuda:<number>",
    lambda value: re.fullmatch(r"auto|cpu|cuda(:\d+)?", value) is not None,
)


@dataclass
class NoiseSettings:
    """The section ``noise``."""

    kind: str = "permute"  # one of datasets.noise
    fraction: Annotated[float, FRACTION] = 0.4
    seed: Annotated[int | None, SEED] = None  # null: that of the run


@dataclass
class ValidationSettings:
    """The section ``validation``: a part of the training set to choose an epoch on."""

    fraction: Annotated[float, HELD_OUT] = 0.0
    clean: bool = False  # judge it by its true labels
    folds: Annotated[int | None, AT_LEAST_2] = None  # or hold out one of so many parts,
    fold: Annotated[int | None, AT_LEAST_0] = None  # this one, from 0


@dataclass
class TrustedSettings:
    """The section ``trusted``: samples with true labels for methods that use such."""

    count: Annotated[int, AT_LEAST_0] = 0
    per_class: bool = True  # as many of each class
    # also trained on: true, with their true labels; "only", nothing else; "given", as any others
    train: bool | Literal["only", "given"] = False


@dataclass
class Settings:
    """A whole configuration; the signature of what a section names says which keys it has."""

    dataset: Section = field(default_factory=lambda: {"name": "digits"})
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    task: Literal["classification", "regression"] = "classification"
    task_loss: str = "cross_entropy"  # one of losses.task
    features: Section | None = None  # of a network that is not trained, in the place of images
    model: Section = field(default_factory=lambda: {"name": "cnn"})
    loss: Section = field(default_factory=lambda: {"name": "Plain"})
    optimizer: Section = field(default_factory=lambda: {"name": "SGD", "lr": 0.1})
    schedule: Section | None = None
    epochs: Annotated[int, AT_LEAST_1] = 20  # passes over the training samples
    chunk_steps: Annotated[int | None, AT_LEAST_1] = None  # evaluate after so many steps
    batch_size: Annotated[int, AT_LEAST_1] = 128  # of all processes together
    clip_norm: Annotated[float | None, POSITIVE] = None
    seed: Annotated[int, SEED] = 1
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    trusted: TrustedSettings = field(default_factory=TrustedSettings)
    targets: str | None = None  # labels.npz of a run: train on its labels
    init_from: str | None = None  # a finished run: begin with its weights
    evaluate_networks: Literal["first", "mean"] = "first"  # of methods with several networks
    record_losses: bool = False  # write losses.npy and margins.npy, after each epoch
    augment_recording: bool = True  # record the losses of augmented samples
    extended: list[dict] | None = None  # set by a finished run that goes on for more epochs
    score: Annotated[str | None, SCORE] = None  # ranks the samples: one of utils.scores
    label: str | None = None  # what tables and pictures call it; null: the method
    tensorboard: bool = False
    data_root: str = "data"
    run_dir: str | None = None  # null: runs/<dataset>/<params file>/<noise>/seed<k>
    device: Annotated[str, DEVICE] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    deterministic: bool = False  # on a GPU: the same bits each time
    channels_last: bool = True
    threads: Annotated[int | None, AT_LEAST_1] = None  # of the CPU; null: PyTorch's choice


DEFAULTS = dataclasses.asdict(Settings())
SECTIONS = ("dataset", "noise", "model", "loss", "optimizer", "schedule")
NAMED = (*SECTIONS, "features")  # a text is the name of what they build
PLACES = ("dataset.root", "dataset.file", "dataset.test_file")  # of data whose content is compared
DISPLAY = ("label",)  # says nothing of what is run
EXECUTION = (  # where and on what a run goes on: free to change when it is resumed
    "data_root",
    "run_dir",
    "device",
    "threads",
    "channels_last",
    "deterministic",
    "tensorboard",
    "dataset.num_workers",
    "dataset.memory_limit",
    "dataset.selection.history",
)
