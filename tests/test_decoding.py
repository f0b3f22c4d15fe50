"""Pictures that would decode to nothing: of 16 bits, of floats, with alpha; and those to turn."""

import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps, features
from torchvision.transforms import functional
from torchvision.transforms.functional import pil_to_tensor

from datasets.images import decode, decode_all, pack
from datasets.look import median_side
from utils import plots
from utils.plots import draw_suspects

RAMP = np.arange(64).reshape(8, 8) * 1040  # up to 65,520
BYTES = (RAMP / 257).round().astype(np.uint8)


def decoded(path, image, **options):
    image.save(path, **options)
    return decode(str(path))


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm"])
def test_grey_of_16_bits_is_scaled_to_8(tmp_path, name):
    pixels = RAMP.astype(np.int32 if name == "x.pgm" else np.uint16)
    got = decoded(tmp_path / name, Image.fromarray(pixels))
    assert np.array_equal(got.numpy(), np.stack([BYTES] * 3))


def test_floats_are_scaled_if_white_is_known(tmp_path):
    path = tmp_path / "x.tif"
    got = decoded(path, Image.fromarray((RAMP / 65535).astype(np.float32)))
    assert np.array_equal(got[0].numpy(), BYTES)
    for whole in (BYTES.astype(np.float32), BYTES.astype(np.int32)):
        assert np.array_equal(decoded(path, Image.fromarray(whole))[0].numpy(), BYTES)
    for strange in (RAMP.astype(np.float32), RAMP.astype(np.int32), RAMP - 5.0, RAMP * np.nan):
        kind = np.int32 if strange.dtype.kind == "i" else np.float32
        with pytest.raises(OSError, match=r"numbers of 32 bits, .*: save it with 8 or 16 bits"):
            decoded(path, Image.fromarray(strange.astype(kind)))


@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.gif", "la.png", "palette.png"])
@pytest.mark.parametrize("shade", [0, 255])
def test_a_shape_in_the_alpha_channel_is_seen(tmp_path, name, shade):
    pixels = np.full((16, 16, 4), shade, np.uint8)
    pixels[:, :, 3] = 0
    pixels[2:6, 3:12, 3] = 255
    image = Image.fromarray(pixels)
    image = {"la.png": image.convert("LA"), "palette.png": image.quantize(4)}.get(name, image)
    got = decoded(tmp_path / name, image, lossless=True)
    expected = torch.full((3, 16, 16), 255 - shade, dtype=torch.uint8)  # white, or what shows it
    expected[:, 2:6, 3:12] = shade
    assert torch.equal(got, expected)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_half_transparent_pixels_are_mixed_with_white_and_opaque_ones_left(tmp_path):
    random = np.random.default_rng(0).integers(0, 256, (9, 11, 4), np.uint8)
    image = Image.fromarray(random)
    alpha = random[:, :, 3:] / 255
    expected = random[:, :, :3] * alpha + 255 * (1 - alpha)
    got = decoded(tmp_path / "x.png", image).permute(1, 2, 0).numpy()
    assert np.abs(got - expected).max() <= 1
    image.putalpha(255)
    for opaque in (image, image.convert("LA"), image.convert("RGB"), image.convert("P")):
        opaque.save(tmp_path / "x.png")
        expected = pil_to_tensor(Image.open(tmp_path / "x.png").convert("RGB"))
        assert torch.equal(decode(str(tmp_path / "x.png")), expected)
    assert decoded(tmp_path / "x.png", Image.new("RGBA", (4, 4))).min() == 255  # nothing to see


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tif", "damaged.jpg"])
@pytest.mark.parametrize("orientation", range(1, 10))  # 9 is none
def test_pictures_are_turned_as_their_tag_says(tmp_path, name, orientation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8))
    image.getexif()[0x0112] = orientation
    path = tmp_path / name
    got = decoded(path, image, exif=image.getexif(), quality=95)
    if name == "damaged.jpg":  # which Pillow decodes, and torchvision does not
        path.write_bytes(path.read_bytes()[:-2] + b"\0" * 40)
        got = decode(str(path))
    expected = pil_to_tensor(ImageOps.exif_transpose(Image.open(path)))
    assert torch.equal(got, expected)
    shape = (3, 31, 20) if 5 <= orientation <= 8 else (3, 20, 31)
    assert got.shape == shape


def test_pictures_that_are_kept_or_packed_are_turned_too(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8))
    image.getexif()[0x0112] = 6
    paths = []
    for name in ("a.jpg", "b.png", "c.tif"):
        paths.append(str(tmp_path / name))
        image.save(paths[-1], exif=image.getexif())
    for images in (decode_all(paths, 10**6), pack(paths, 100, tmp_path / "cache")):
        for path, got in zip(paths, images, strict=True):
            assert got.shape == (3, 31, 20) and torch.equal(got, decode(path))


def test_a_contact_sheet_shows_what_is_trained_on(tmp_path):
    pixels = np.zeros((96, 96, 4), np.uint8)
    pixels[:48, :, 3] = 255
    path = str(tmp_path / "x.png")
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 6  # the upper half is the right one then
    image.save(path, exif=image.getexif())
    table = {key: np.zeros(1, int) for key in ("index", "given", "predicted")}
    draw_suspects(tmp_path / "sheet.png", table, str, [path])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))[26:122, 2:98]
    assert sheet[:, :48].min() == 255 and sheet[:, 48:].max() == 0


def test_an_image_without_room_in_memory_leaves_that_of_others(tmp_path, monkeypatch):
    paths = [str(tmp_path / f"{shade}.png") for shade in (10, 20, 30, 40)]
    for path in paths:
        Image.new("L", (4, 4), int(Path(path).stem)).save(path)
    looked = iter([False, False, True, False])

    def read_size(path):  # of a drive that fails for a moment
        if next(looked):
            raise OSError("no answer")
        return 4, 4

    monkeypatch.setattr("datasets.images.read_size", read_size)
    images = decode_all(paths, 10**6)
    assert [int(images[row].unique()) for row in range(4)] == [10, 20, 30, 40]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("x.png", "zero.png", "folder.png"):
        with pytest.raises(OSError, match="it is not a regular file"):
            decode(str(tmp_path / name))
    paths = [str(tmp_path / name) for name in ("a.png", "x.png")]
    Image.new("RGB", (4, 4)).save(paths[0])
    assert decode_all(paths, 10**6).shapes.tolist() == [[4, 4], [0, 0]]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow knows no AVIF")
def test_a_damaged_avif_is_an_image_that_cannot_be_read(tmp_path):
    paths, buffer, messages = [str(tmp_path / "a.png"), str(tmp_path / "b.avif")], io.BytesIO(), ""
    Image.new("RGB", (4, 4)).save(paths[0])
    Image.new("RGB", (16, 16)).save(buffer, "AVIF")
    whole = buffer.getvalue()
    for length in range(len(whole)):  # as a broken download leaves it: zeros at its end
        content = whole[:length].ljust(len(whole), b"\0")
        (tmp_path / "b.avif").write_bytes(content)
        try:
            Image.open(io.BytesIO(content)).load()
        except RuntimeError as error:
            messages += str(error)
            with pytest.raises(OSError, match=re.escape(str(error))):
                decode(paths[1])
            assert decode_all(paths, 10**6).shapes.tolist() == [[4, 4], [0, 0]]
            assert median_side(paths) in (4, 10)
        except OSError:
            continue
    assert "decode image" in messages and "decode frame" in messages  # of header and of pixels


def test_an_error_of_pytorch_is_none_of_an_image(tmp_path, monkeypatch):
    def out_of_memory(image):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(functional, "pil_to_tensor", out_of_memory)
    with pytest.raises(RuntimeError, match="not enough memory"):
        decoded(tmp_path / "x.png", Image.new("RGB", (4, 4)))


def test_below_an_image_stand_its_rank_and_file_and_labels_in_a_font_that_has_their_letters(
    tmp_path, monkeypatch
):
    written = []

    def note(drawing, position, text, colour, font):
        written.append((text, colour))

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    paths = [str(tmp_path / name) for name in ("first.png", "IMG_20240101_123456.png")]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    table = {"index": np.array([1, 0]), "given": np.array([0, 1]), "predicted": np.array([0, 0])}
    draw_suspects(tmp_path / "sheet.png", table, ["Äpfel", "a" * 30].__getitem__, paths[::-1])
    legend, below = written[:2], written[2:]
    assert ["rank and file" in legend[0][0], "predicted" in legend[1][0]] == [True, True]
    assert below == [
        ("1 IMG_202…56.png", "#777777"),
        ("Äpfel", "black"),
        ("2 first.png", "#777777"),
        ("aaaaaaaa…aaaaaaa", "black"),
        ("Äpfel?", legend[1][1]),
    ]
    table = {key: values[:1] for key, values in table.items()}
    written.clear()
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    draw_suspects(tmp_path / "sheet.png", table, str, [*images])
    assert written[2][0] == "1 1"


def test_a_font_is_chosen_by_the_letters_of_a_name(monkeypatch, tmp_path):
    assert plots.font_for("plain") is plots.font_for("Äpfel")
    own = plots._paths()[0]
    other = shutil.copy(own, tmp_path / "other.ttf")
    letters = {own: {ord("a")}, other: {ord("a"), ord("狗")}}
    monkeypatch.setattr(plots, "_paths", lambda: [own, other])
    monkeypatch.setattr(plots, "_letters", letters.__getitem__)
    assert plots.font_for("狗").path == other and plots.font_for("狗猫").path == own
    assert plots.shorten("狗" * 8, 16) == "狗" * 8
    assert plots.shorten("狗" * 9, 16) == "狗狗狗狗…狗狗狗"
    assert plots.shorten("a\udcff", 16) == "a?"
