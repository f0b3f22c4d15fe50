"""What a trained network says of new images or texts.

    python -m utils.predict runs/mended new_photos/ --output predictions.csv
    python -m utils.predict runs/mended a.jpg b.png              on the screen
    python -m utils.predict runs/texts new.csv --output predictions.csv
    python -m utils.predict runs/mended --export model.pt2       or model.onnx

Images are files, folders (all images in them) or tables with a column path, relative to the table's
folder or to --root; texts are tables with the column of texts that the run was trained on. A row
has the most probable class, its probability, and the next two; in a regression the number. An image
that cannot be read is reported and has an empty row; the others go on.

--export writes the network with the scaling of its inputs, from pixels [B, C, H, W] of 0 to 255,
resized and cropped as labels.json beside it says, to probabilities [B, classes].
"""

import argparse
import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import models
from datasets.images import decode_each, middle, normalisation, shorter_side
from datasets.scan import all_images
from datasets.tables import is_table, read_table
from models import backbones
from models.several import build_several
from utils.build import asks_for, build
from utils.device import choose_device
from utils.errors import UserError
from utils.escapes import in_a_cell, printable
from utils.files import atomic_write
from utils.network import load_weights, read_use

SHOWN = 3  # classes of each sample


class Network(nn.Module):
    """A trained network from the values of pixels, 0 to 255, to probabilities or numbers.

    Args:
        images: ``mean`` and ``std`` of those that the model takes; None if it takes no images.
    """

    def __init__(self, model: nn.Module, is_classifier: bool, images: dict | None):
        super().__init__()
        self.model, self.is_classifier = model, is_classifier
        scale, shift = normalisation(images["mean"], images["std"]) if images else (None, None)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, inputs: Tensor) -> Tensor:
        """Pixels [B, C, H, W], or what a model of texts takes -> [B, classes], or [B]."""
        if self.scale is not None:
            inputs = inputs.float() * self.scale + self.shift
        output = self.model(inputs).float()
        return output.softmax(1) if self.is_classifier else output.flatten()


def load_network(directory: Path) -> tuple[Network, dict]:
    """The network of a finished run, in evaluation mode, and its network.json.

    That has one more entry: ``images``, their ``size``, ``channels``, ``mean`` and ``std``; None if
    the network takes no images.

    Raises UserError if the run is not finished, OSError if its files are damaged.
    """
    use = read_use(directory)
    known = use["facts"] | {"image_mean": use["mean"], "image_std": use["std"]}
    facts = {key: fact for key, fact in known.items() if asks_for(models, use["model"], key)}
    model = build_several(
        lambda: build(models, _without_download(use["model"]), **facts),
        use["networks"],
        use["evaluate_networks"],
    )
    load_weights(model, directory)
    images = None
    if use.get("features") is not None:
        backbone = build(backbones, use["features"])
        model = nn.Sequential(backbone.network, model)
        images = {"size": backbone.image_size, "channels": 3}
        images |= {"mean": backbone.mean, "std": backbone.std}
    elif use["mean"]:
        images = {"size": use["facts"]["image_size"], "channels": use["facts"]["in_channels"]}
        images |= {"mean": use["mean"], "std": use["std"]}
    use["images"] = images
    return Network(model, bool(use["classes"]), images).eval(), use


def _without_download(spec):
    """A model that does not fetch the weights that it began with: the run has its own."""
    replaced = {"pretrained": False, "weights": None}
    return spec | {key: value for key, value in replaced.items() if key in spec}


def find_images(inputs: list[Path], root: Path | None) -> tuple[list[str], list[str]]:
    """Paths of images, and their names.

    Of one folder or table these are relative to it, or as it has them; of several inputs, whose
    names may be the same, they are the paths.

    Raises FileNotFoundError for what is not there, UserError if there are none.
    """
    paths, names = [], []
    for given in inputs:
        if given.is_dir():
            found = all_images(given)
            if not found:
                raise UserError(f"{given} holds no images")
            paths += found
            names += [os.path.relpath(path, given) for path in found]
        elif is_table(given):
            table = _column(given, "path", skip_spaces=True, paths="path")
            base = root or given.parent
            paths += [str(base / path) for path in table]
            names += table
        elif given.exists():
            paths.append(str(given))
            names.append(str(given))
        else:
            raise FileNotFoundError(f"there is no file or folder {given}")
    return paths, names if len(inputs) == 1 else paths


def _column(path, name, **options) -> list[str]:
    """A column of a table, which is read as a dataset of images, or else of texts, reads it."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    table = read_table(path, **options)
    if table.empty:
        raise UserError(f"{path} has no rows: there is nothing to predict in it")
    if name not in table:
        raise UserError(f"{path} has no column {name!r}; it has {', '.join(table.columns)}")
    return list(table[name])


def resized(image: Tensor, use: dict) -> Tensor:
    """A decoded image [3, H, W] as the network was evaluated on: [C, S, S] of uint8.

    Of a network for images in memory, which have one size, the whole image is resized to that.
    """
    from torchvision.transforms.v2.functional import center_crop, resize, rgb_to_grayscale

    size, image = use["images"]["size"], middle(image)
    if use["files"]:
        return center_crop(resize(image, [shorter_side(size)], antialias=True), [size, size])
    if use["images"]["channels"] == 1:
        image = rgb_to_grayscale(image)
    return resize(image, [size, size], antialias=True)


@torch.no_grad()
def predict_images(
    network: Network, use: dict, paths: list[str], device: torch.device, batch_size: int
) -> Iterator[Tensor | None]:
    """What the network says of each image, in order; None for one that cannot be read."""
    waiting: list[Tensor | None] = []

    def answers():
        images = [image for image in waiting if image is not None]
        output = iter(network(torch.stack(images).to(device)).cpu() if images else ())
        yield from (None if image is None else next(output) for image in waiting)
        waiting.clear()

    for image in decode_each(paths, lambda image: resized(image, use), "predicting"):
        waiting.append(image)
        if len(waiting) == batch_size:
            yield from answers()
    yield from answers()


@torch.no_grad()
def predict_texts(
    network: Network, use: dict, texts: list[str], device: torch.device, batch_size: int
) -> Iterator[Tensor]:
    """What the network says of each text, in order."""
    from datasets.text import embed, tokenize

    spec, model = use["dataset"], use["model"]
    encoder = spec.get("encoder") or model.get("path")
    inputs = tokenize(encoder, texts, max_length=spec.get("max_length", 64))
    if spec.get("features"):
        inputs = embed(encoder, inputs, device)
    for part in tqdm(inputs.split(batch_size), "predicting", leave=False, disable=None):
        yield from network(part.to(device)).cpu()


def row_of(answer: Tensor | None, classes: list[str]) -> list[str]:
    """The cells of a row: label, probability, the next two; or the number."""
    count = min(SHOWN, len(classes)) if classes else 0
    if answer is None:
        return [""] * (2 * count or 1)
    if not classes:
        return [f"{answer:.6g}"]
    best = answer.topk(count)
    pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [cell for value, label in pairs for cell in (in_a_cell(classes[label]), f"{value:.6g}")]


def heads(first: str, classes: list[str]) -> list[str]:
    """The heads of the table of predictions."""
    if not classes:
        return [first, "prediction"]
    numbers = ("", *(f"_{number}" for number in range(2, min(SHOWN, len(classes)) + 1)))
    return [first, *(f"{name}{number}" for number in numbers for name in ("label", "probability"))]


def export(network: Network, use: dict, path: Path):
    """Write the network as .pt2 (torch.export) or .onnx, and labels.json beside it.

    Raises UserError for another ending, for a network that takes no images, if packages are
    missing, or if a file is there.
    """
    if use["images"] is None:
        raise UserError("--export is for networks that take images")
    labels, description = path.with_name("labels.json"), json.dumps(_labels(use), indent=1)
    same = labels.is_file() and labels.read_text() == description  # of the other format
    for file in (path, *([] if same else [labels])):
        if os.path.lexists(file):
            raise UserError(f"{file} is there already: choose another name, or remove it")
    channels, size = (use["images"][key] for key in ("channels", "size"))
    example, batch = torch.zeros(2, channels, size, size), torch.export.Dim("batch")
    if path.suffix == ".pt2":
        program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        content = buffer.getvalue()
    elif path.suffix == ".onnx":
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"--export {path} needs a package that is not here ({error}): pip install onnx "
                f"onnxscript"
            ) from None
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["pixels"],
            output_names=["probabilities" if use["classes"] else "numbers"],
        )
        content = program.model_proto.SerializeToString()
    else:
        raise UserError(f"--export writes .pt2 or .onnx, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(content)
    with atomic_write(labels) as file:
        file.write(description)


def _labels(use):
    """labels.json: what goes into an exported network, and what comes out of it."""
    channels, size = (use["images"][key] for key in ("channels", "size"))
    return {
        "classes": use["classes"],
        "input": ["batch", channels, size, size],
        "pixels": "0 to 255, RGB" if channels == 3 else "0 to 255, grey",
        "resize_shorter_side": shorter_side(size) if use["files"] else None,
        "center_crop": size if use["files"] else None,
        "resize": None if use["files"] else size,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="directory of a finished run")
    parser.add_argument("inputs", type=Path, nargs="*", help="images, folders or tables")
    parser.add_argument("--output", type=Path, help="a .csv to write; else they are printed")
    parser.add_argument("--root", type=Path, help="what the paths of a table are relative to")
    parser.add_argument("--export", type=Path, help="write the network as .pt2 or .onnx")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<number>")
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_intermixed_args(arguments)
    try:
        return _main(options)
    except (UserError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2


def _main(options):
    if options.output and os.path.lexists(options.output):
        raise UserError(f"{options.output} is there already: choose another name, or remove it")
    if options.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {options.batch_size}")
    if not options.inputs and not options.export:
        raise UserError("name images, folders or tables to predict, or --export a file")
    network, use = load_network(options.run)
    if options.export:
        export(network, use, options.export)
        print(printable(f"{options.export}, and what it takes in labels.json"))
    if not options.inputs:
        return 0
    device, _ = choose_device(options.device, "fp32", None)
    network.to(device)
    common = {"device": device, "batch_size": options.batch_size}
    if use["images"] is not None:
        paths, names = find_images(options.inputs, options.root)
        answers, first = predict_images(network, use, paths, **common), "path"
    elif use["dataset"]["name"] == "text":
        first = use["dataset"].get("text_column", "text")
        names = [text for path in options.inputs for text in _column(path, first)]
        paths, answers = names, predict_texts(network, use, names, **common)
    else:
        raise UserError(
            f"predictions are of images and of texts, not of the dataset {use['dataset']['name']}"
        )
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.output.parent).close()  # now, if nobody can write there
    answers = list(answers)  # computed here
    failed = [path for path, answer in zip(paths, answers, strict=True) if answer is None]
    for path in failed:
        print(printable(f"warning: {path} cannot be read as an image"), file=sys.stderr)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(heads(first, use["classes"]))
    for name, answer in zip(names, answers, strict=True):
        writer.writerow([in_a_cell(name), *row_of(answer, use["classes"])])
    if options.output:
        with atomic_write(options.output) as file:
            file.write(table.getvalue())
        left = f", {len(failed)} could not be read" if failed else ""
        print(printable(f"{options.output}: {len(names) - len(failed):,} predictions{left}"))
    else:
        print(printable(table.getvalue()), end="")
    return 2 if len(failed) == len(names) else 0


if __name__ == "__main__":
    sys.exit(main())
