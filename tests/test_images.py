"""Image files: decoded to what Pillow decodes, and packed as they are in the files."""

import io
import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.io import write_png
from torchvision.transforms.functional import pil_to_tensor

import datasets.images
from datasets import folder
from datasets.images import Decoded, decode, middle, pack
from tests.test_loaders import loaders_of


def picture(seed=0, size=(30, 40)):
    """Something with low and high frequencies."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(noise // 4).resize((size[1] * 3, size[0] * 3), Image.Resampling.BICUBIC)


def as_jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def as_pillow(content):
    """What Pillow makes of it, None where that is an error."""
    try:
        image = Image.open(io.BytesIO(content))
        return pil_to_tensor(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError):
        return None


@pytest.mark.parametrize("how", ["RGB", "L", "CMYK", "YCbCr", "progressive", "turned", "damaged"])
def test_a_jpeg_is_decoded_to_the_pixels_that_pillow_gives(how, tmp_path):
    image = picture().convert(how if how in ("L", "CMYK", "YCbCr") else "RGB")
    image.getexif()[0x0112] = 6  # to be shown turned
    options = {"exif": image.getexif()} if how == "turned" else {}
    content = as_jpeg(image, progressive=how == "progressive", **options)
    random, seen = np.random.default_rng(0), set()
    for number in range(60 if how == "damaged" else 1):
        changed = bytearray(content)
        if how == "damaged":
            for position in random.integers(0, len(changed), random.integers(1, 20)):
                changed[position] = random.integers(256)
            changed = changed[: random.integers(1, len(changed))] if number % 2 else changed
        (tmp_path / "x.jpg").write_bytes(changed)
        expected = as_pillow(bytes(changed))
        seen.add(expected is None)
        if expected is None:
            with pytest.raises(OSError):
                decode(str(tmp_path / "x.jpg"))
        else:
            assert torch.equal(decode(str(tmp_path / "x.jpg")), expected)
    assert seen == ({True, False} if how == "damaged" else {False})


@pytest.mark.parametrize("more", [0, 2**20])
def test_a_jpeg_that_would_fill_the_memory_is_an_error(tmp_path, more):
    content = bytearray(as_jpeg(picture()))
    sizes = content.index(b"\xff\xc0") + 5  # height and width
    content[sizes : sizes + 4] = b"\xff\x00\xff\x00"
    (tmp_path / "bomb.jpg").write_bytes(content + bytes(more))
    with pytest.raises(OSError, match="decompression bomb"):
        decode(str(tmp_path / "bomb.jpg"))


@pytest.fixture
def tree(tmp_path):
    for part in ("train", "test"):
        for number in range(12):
            path = tmp_path / part / "ab"[number % 2] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_jpeg(picture(number, size=(20 + number, 40 - number))))
    return tmp_path


def loaders(tree, **options):
    return loaders_of(folder(str(tree), image_size=48, **options), batch_size=5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_evaluated_out_of_the_cache_is_what_is_in_the_files(tree, num_workers):
    packed, read = (loaders(tree, cache=cache, num_workers=num_workers) for cache in (True, False))
    for batches in (
        zip(packed.train_plain, read.train_plain, strict=True),
        zip(packed.evaluation["test"], read.evaluation["test"], strict=True),
    ):
        for batch, other in batches:
            assert torch.equal(batch.input, other.input)
            assert torch.equal(batch.target, other.target)
    for batch in packed.train:
        assert batch.input.shape[1:] == (3, 48, 48) and batch.input.std() > 0.1
    assert len(list((tree / "cache").glob("*.images"))) == 2


def test_the_cache_is_made_once_and_again_when_a_file_changes(tree, monkeypatch):
    paths = [str(path) for path in sorted((tree / "train").rglob("*.jpg"))]
    first = pack(paths, 55, tree / "cache")
    shorter = [min(*decode(path).shape[1:], 55) for path in paths]
    assert [min(image.shape[1:]) for image in first] == shorter
    monkeypatch.setattr(datasets.images, "decode", lambda path: pytest.fail("decoded again"))
    again = pack(paths, 55, tree / "cache")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    monkeypatch.undo()
    Image.new("RGB", (60, 60), (200, 0, 0)).save(paths[3], quality=100)
    assert torch.equal(pack(paths, 55, tree / "cache")[3][:, 0, 0], decode(paths[3])[:, 0, 0])
    assert len(list((tree / "cache").glob("*.images"))) == 2
    assert not list((tree / "cache").glob(".*"))  # nothing half written


def test_an_image_that_cannot_be_read_when_it_is_packed_is_tried_again_later(tree):
    paths = [str(path) for path in sorted((tree / "train").rglob("*.jpg"))]
    content = (tree / "train/a/0.jpg").read_bytes()
    (tree / "train/a/0.jpg").unlink()
    images = pack(paths, 55, tree / "cache")
    with pytest.raises(OSError):
        images[0]
    assert torch.equal(images[1], pack(paths[1:], 55, tree / "cache")[0])
    (tree / "train/a/0.jpg").write_bytes(content)
    assert torch.equal(images[0], decode(paths[0]))


def test_a_cache_that_was_cut_off_is_an_error(tree):
    paths = [str(path) for path in sorted((tree / "train").rglob("*.jpg"))]
    pack(paths, 55, tree / "cache")
    (packed,) = (tree / "cache").glob("*.images")
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(OSError, match=f"{packed} is damaged: remove it"):
        pack(paths, 55, tree / "cache")


def test_a_cache_that_is_there_needs_no_leave_to_write(tree, monkeypatch):
    paths = [str(path) for path in sorted((tree / "train").rglob("*.jpg"))]
    pack(paths, 55, tree / "cache")
    monkeypatch.setattr(datasets.images.fcntl, "flock", lambda *_: pytest.fail("locked"))
    monkeypatch.setattr(
        datasets.images.Path, "mkdir", lambda *_, **__: pytest.fail("made a folder")
    )
    assert min(pack(paths, 55, tree / "cache")[3].shape[1:]) == 55


def test_a_cache_may_be_larger_than_the_memory(tmp_path):
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    count = int(memory * 1.5 / (3 * 20_000**2)) + 1
    with open(tmp_path / "large.images", "wb") as file:
        file.truncate(count * 3 * 20_000**2)  # nothing but a hole
    shapes = np.array([[20_000, 20_000]] * (count - 1) + [[10, 12]] * 2)
    images = Decoded([""] * (count + 1), shapes, tmp_path / "large.images")
    assert images[count].shape == (3, 10, 12)
    again = pickle.loads(pickle.dumps(images))
    assert again.map is None and torch.equal(again[count - 1], images[count - 1])


def slow_pack(paths, cache, results):
    decoded = []

    def slow_decode(path):
        decoded.append(path)
        time.sleep(0.1)
        return decode(path)

    datasets.images.decode = slow_decode
    images = pack(paths, 55, cache)
    results.put((len(decoded), int(images[0].sum())))


def test_of_two_processes_that_want_the_cache_one_makes_it(tmp_path):
    paths = [str(tmp_path / f"{number}.png") for number in range(5)]
    for number, path in enumerate(paths):
        write_png(torch.full((3, 10, 12), number + 1, dtype=torch.uint8), path)
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    arguments = (paths, tmp_path / "cache", results)
    both = [fork.Process(target=slow_pack, args=arguments) for _ in range(2)]
    for process in both:
        process.start()
    assert sorted(results.get(timeout=60) for _ in both) == [(0, 360), (5, 360)]
    for process in both:
        process.join()


@pytest.mark.parametrize("shape", [(1, 12_000), (12_000, 1)])
@pytest.mark.parametrize("cache", [True, False])
def test_a_scan_line_is_not_blown_up_to_gigabytes(tree, shape, cache):
    Image.fromarray(np.full((*shape, 3), 90, np.uint8)).save(tree / "train/a/0.png")
    Image.fromarray(np.full((*shape, 3), 90, np.uint8)).save(tree / "test/a/0.png")
    found = loaders(tree, cache=cache, num_workers=0)
    for loader in (found.train, found.train_plain, found.evaluation["test"]):
        shapes, transform = [], loader.files.transform

        def noted(image, shapes=shapes, transform=transform):
            shapes.append(image.shape)
            return transform(image)

        loader.files.transform = noted
        assert all(batch.input.shape[1:] == (3, 48, 48) for batch in loader)
        assert max(max(shape[1:]) for shape in shapes) < 200


def test_images_of_ordinary_shape_are_whole():
    for shape in ((3, 10, 320), (3, 320, 10), (3, 7, 7)):
        image = torch.zeros(shape)
        assert middle(image) is image
    line = torch.arange(1000).expand(3, 2, -1)
    assert torch.equal(middle(line), line[:, :, 468:532])
