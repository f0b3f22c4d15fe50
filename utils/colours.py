"""One colour and marker for each method and one colour for each kind of sample: of all pictures."""

import re
import zlib
from collections.abc import Iterable
from itertools import count

from matplotlib.colors import to_hex, to_rgb

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, VERMILION, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, GREY = "#E69F00", "#56B4E9", "#000000", "#999999"
KINDS = {"easy": BLUE, "hard": ORANGE, "incorrect": VERMILION}  # of samples
COLOURS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK, GREY)
MARKERS = "os^Dv<>P"
METHODS = {  # those of one colour have markers of their own
    "DiscrimLoss": (BLUE, "o"),
    "Plain": (VERMILION, "s"),
    "SuperLoss": (GREEN, "^"),
    "DataParameters": (PINK, "D"),
    "GCE": (ORANGE, "v"),
    "RSL": (SKY, "<"),
    "GradientRescaling": (GREY, ">"),
    "CoTeaching": (BLACK, "P"),
    "CoTeachingPlus": (SKY, "o"),
    "JoCoR": (PINK, "s"),
    "Decoupling": (GREY, "^"),
    "MentorNet": (GREEN, "D"),
    "ForwardCorrection": (ORANGE, "P"),
    "SELFIE": (VERMILION, "v"),
    "JointOptimization": (BLACK, "<"),
    "TwoStage": (BLUE, ">"),
    "CleanNet": (BLACK, "v"),
    "LearningToReweight": (SKY, "D"),
    "LabelCleaning": (ORANGE, "s"),
    "Distillation": (BLUE, "^"),
    "NoisyCleanCRF": (PINK, "<"),
    "small-loss": (ORANGE, "o"),
    "RSL + MixMatch": (GREEN, "s"),
    "small-loss + MixMatch": (GREY, "P"),
}
BY_KEY = {re.sub(r"[\W_]", "", name).lower(): style for name, style in METHODS.items()}
SHADES = (None, "#ffffff", "#000000", "#bbbbbb")  # of several configurations of one method


def style_of(method: str) -> tuple[str, str]:
    """Colour and marker of a method; of an unknown one, what follows from its name.

    It may be named as in tables or as its params file is: "SuperLoss" or "superloss".
    """
    key = re.sub(r"[\W_]", "", method).lower()
    if key in BY_KEY:
        return BY_KEY[key]
    number = zlib.crc32(key.encode(errors="replace"))
    return COLOURS[number % 8], MARKERS[number // 8 % 8]


def styles_of(labels: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Label -> colour and marker, of labels and their methods.

    The first label of a method has its colour, further ones have shades of it, and other markers.
    """
    styles, numbers = {}, {}
    for label, method in labels:
        if label not in styles:
            number = next(numbers.setdefault(method, count()))
            colour, marker = style_of(method)
            marker = MARKERS[(MARKERS.index(marker) + number) % len(MARKERS)]
            styles[label] = _shaded(colour, SHADES[number % len(SHADES)]), marker
    return styles


def _shaded(colour, other):
    if other is None:
        return colour
    pairs = zip(to_rgb(colour), to_rgb(other), strict=True)
    return to_hex([0.55 * part + 0.45 * more for part, more in pairs])
