"""What a network that is not trained makes of images, in their place: computed once and kept."""

import fcntl
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from datasets.base import Dataset, Split, warn
from datasets.copies import among
from datasets.files import check_unreadable, evaluation_transform
from datasets.images import middle, normalisation
from utils.decoding import check_regular, decode
from utils.errors import UserError
from utils.files import atomic_write, file_sha256, map_array

CHUNK = 500  # images whose features are a file of the cache: an interruption costs no more
BATCH = 50
VERSION = "1"  # of how features are computed: another one makes kept ones unknown


@torch.no_grad()
def replace_images(
    dataset: Dataset,
    network: nn.Module,
    *,
    image_size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    device: torch.device | str,
    folder: Path,
) -> Dataset:
    """The dataset with features [N, D] in the place of its images, in all parts.

    Image files are resized and cropped as test images are, images in memory are resized; nothing is
    augmented. A file that cannot be read is left out. Features are kept in ``folder``, CHUNK images
    a file, which is named after the bytes of these images, the weights and the preparation; other
    processes that want them wait meanwhile.

    Args:
        network: from [B, 3, image_size, image_size] to [B, D], of images normalised by ``mean`` and
            ``std``.

    Raises:
        UserError: inputs are no images.
        OSError: more than MAX_UNREADABLE of the files of a part cannot be read, or a kept file is
            damaged.
    """
    if not dataset.is_images:
        raise UserError(
            "features are made of images, and the inputs of this dataset are none: set "
            "features=null"
        )
    network = network.eval().to(device, memory_format=torch.channels_last)
    extract = _Extractor(network, image_size, normalisation(mean, std), device, folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts, kept = {}, None
    for field in fields(dataset):
        part = getattr(dataset, field.name)
        if isinstance(part, Split):
            parts[field.name], rows = extract(part)
            kept = rows if field.name == "train" else kept
    tests = {name: extract(part)[0] for name, part in dataset.more_tests.items()}
    return replace(
        dataset,
        **parts,
        more_tests=tests,
        in_channels=parts["train"].inputs.shape[1],
        image_size=1,
        features_size=image_size,
        mean=(),
        std=(),
        crop_padding=0,
        flip=False,
        augment_test=False,
        true=None if dataset.true is None else dataset.true[kept],
        original=dataset.original and among(dataset.original, kept.tolist()),
        unreadable=dataset.unreadable | extract.unreadable,
    )


class _Extractor:
    """Makes features of parts of a dataset; ``unreadable``: files left out, path: reason."""

    def __init__(self, network, image_size, normalisation, device, folder):
        self.network, self.image_size, self.device = network, image_size, device
        self.scale, self.shift = (part.to(device) for part in normalisation)
        self.folder, self.unreadable = folder, {}
        self.transform = evaluation_transform(image_size)
        digest = hashlib.sha256(f"{VERSION} {image_size} {normalisation} {network}".encode())
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
        self.version = digest.digest()

    def __call__(self, part: Split) -> tuple[Split, Tensor]:
        """The part made of features, and which of its rows can be read."""
        if len(part) == 0:  # a test part may be
            return Split(torch.empty(0, 0), part.targets, images=part.source), torch.arange(0)
        features, chunks = None, torch.arange(len(part)).split(CHUNK)
        with (
            ThreadPoolExecutor() as pool,  # files are read without the interpreter's lock
            tqdm(
                total=len(part), desc="features", unit=" images", leave=False, disable=None
            ) as bar,
        ):
            for rows in chunks:
                inputs = part.inputs[rows[0] : rows[-1] + 1]
                path = self.folder / f"{self._name(inputs, pool)}.npy"
                if not path.exists():
                    self._write(path, inputs, pool)
                bar.update(len(rows))
                made = self._read(path, len(rows))
                if features is None or features.shape[1] < made.shape[1]:  # 1: none can be read
                    features = torch.full((len(part), made.shape[1]), torch.nan)
                features[rows] = made
        kept = features[:, 0].isnan().logical_not().nonzero().squeeze(1)
        if len(kept) < len(part):
            self._leave_out(part.inputs, features)
            features = features[kept]
        sources = part.source
        sources = sources[kept] if isinstance(sources, Tensor) else [sources[row] for row in kept]
        targets = part.targets[kept.to(part.targets.device)]
        given = None if part.given is None else part.given[kept]
        return Split(features, targets, images=sources, given=given), kept

    def _name(self, inputs, pool):
        digest = hashlib.sha256(self.version)
        if isinstance(inputs, Tensor):
            digest.update(f"{tuple(inputs.shape)}".encode() + inputs.cpu().numpy().tobytes())
        else:
            for content in pool.map(_content, inputs):
                digest.update(content.encode())
        return digest.hexdigest()[:32]

    def _write(self, path, inputs, pool):
        """Compute and keep features, unless another process has done so meanwhile."""
        with open(self.folder / f".lock-{path.name[0]}", "w") as lock:  # few, which stay
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                features = self._compute(inputs, pool)
                with atomic_write(path, "wb") as file:
                    np.save(file, features.numpy())

    def _compute(self, inputs, pool):
        """Features [n, D]; NaN of those that cannot be read; [n, 1] if none can."""
        batches = []
        for start in range(0, len(inputs), BATCH):
            batch = inputs[start : start + BATCH]
            readable = slice(None)
            if not isinstance(batch, Tensor):
                images = list(pool.map(self._decode, batch))
                readable = [row for row, image in enumerate(images) if image is not None]
                images = [images[row] for row in readable]
                batch = torch.stack(images) if images else torch.empty(0)
            size = len(inputs[start : start + BATCH])
            features = self._features(batch) if len(batch) else None
            batches.append((size, readable, features))
        width = next((part.shape[1] for *_, part in batches if part is not None), 1)
        table = []
        for size, readable, features in batches:
            rows = torch.full((size, width), torch.nan)
            if features is not None:
                rows[readable] = features
            table.append(rows)
        return torch.cat(table)

    def _decode(self, path):
        try:
            return self.transform(middle(decode(path)))
        except OSError:
            return None

    def _features(self, images: Tensor) -> Tensor:
        images = images.to(self.device).float().expand(-1, 3, -1, -1) * self.scale + self.shift
        if images.shape[2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.network(images.contiguous(memory_format=torch.channels_last)).cpu()

    def _read(self, path, count):
        try:
            features = np.array(map_array(path))
        except OSError as error:
            raise OSError(f"{error}: remove it") from None
        if features.dtype != np.float32 or features.ndim != 2 or len(features) != count:
            raise OSError(f"{path} is damaged: remove it")
        return torch.from_numpy(features)

    def _leave_out(self, paths: Sequence[str], features: Tensor):
        """Note the files of rows without features, and why each cannot be read."""
        missing = features[:, 0].isnan().nonzero().squeeze(1).tolist()
        for row in missing:
            try:
                decode(paths[row])
                reason = "it could not be read before"
            except OSError as error:
                reason = str(error)
            warn(f"{paths[row]} cannot be read as an image and is left out ({reason})")
            self.unreadable[paths[row]] = reason
        check_unreadable([paths[row] for row in missing], len(paths))


def _content(path):
    """What identifies the bytes of a file; of one that cannot be opened, that alone."""
    try:
        check_regular(path)
        return file_sha256(path)
    except OSError:
        return "missing"
