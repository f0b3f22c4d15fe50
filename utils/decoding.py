"""Image files as bytes of RGB: what a viewer shows of them."""

import contextlib
import io
import os
import stat

import numpy as np
import torch
from torch import Tensor

JPEG = [0xFF, 0xD8]  # the first bytes of such a file
ORIENTATION = 0x0112  # a tag of EXIF
# by its value: whether rows become columns, and which of the axes of [3, H, W] are mirrored then
TURNS = {
    2: (False, [2]),
    3: (False, [1, 2]),
    4: (False, [1]),
    5: (True, []),
    6: (True, [2]),
    7: (True, [1, 2]),
    8: (True, [1]),
}


def decode(path: str) -> Tensor:
    """An image file as uint8 [3, H, W]; raises OSError if that cannot be.

    It is turned as its EXIF orientation says. What is transparent is white, or black if nothing
    could be seen on white. Grey of 16 bits is divided by 257, and numbers in [0, 1] are multiplied
    by 255; other pixels of more than 8 bits are an error, since nobody says what white is.
    """
    # these take seconds to import: only where images are decoded
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.functional import pil_to_tensor

    with _pillow_errors():
        check_regular(path)
        content = np.fromfile(path, np.uint8)
        image = Image.open(io.BytesIO(content))  # raises if there are too many pixels to decode
    with image:
        # the same pixels as Pillow's in less time; on damaged PNGs torchvision crashes
        if content[:2].tolist() == JPEG:
            with contextlib.suppress(RuntimeError):  # Pillow reads more, and says what is wrong
                pixels = decode_jpeg(torch.from_numpy(content), ImageReadMode.RGB)
                return _turned(pixels, _orientation(image))
        with _pillow_errors():
            image.load()  # which turns a TIFF
            rgb = _as_rgb(image)
        return _turned(pil_to_tensor(rgb), _orientation(image))


def read_size(path: str) -> tuple[int, int]:
    """Height and width by the header of an image file; raises OSError as ``decode``."""
    from PIL import Image

    with _pillow_errors():
        check_regular(path)
        with open(path, "rb") as file, Image.open(file) as image:
            return image.height, image.width


@contextlib.contextmanager
def _pillow_errors():
    """Whatever Pillow raises over a file, as OSError.

    Around Pillow alone: of an AVIF it raises RuntimeError, as PyTorch does where memory runs out.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError:  # its message names a buffer
        raise OSError("no image of a format that is known") from None
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from None


def check_regular(path: str):
    """Raise OSError if this is a FIFO or a device, whose end might never come."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is not a regular file")


def _orientation(image):
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # whatever comes of damaged tags, on which no pixel depends
        return None


def _turned(pixels, orientation):
    transposed, mirrored = TURNS.get(orientation, (False, []))
    if transposed:
        pixels = pixels.transpose(1, 2)
    return pixels.flip(mirrored).contiguous() if transposed or mirrored else pixels


def _as_rgb(image):
    if image.mode.startswith(("I", "F")):
        return _in_bytes(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    if layer.getextrema()[3] == (255, 255):
        return layer.convert("RGB")
    laid = _lay(layer, "white")
    if _is_blank(laid):
        on_black = _lay(layer, "black")
        return laid if _is_blank(on_black) else on_black
    return laid


def _lay(layer, colour):
    from PIL import Image

    ground = Image.new("RGBA", layer.size, colour)
    return Image.alpha_composite(ground, layer).convert("RGB")


def _is_blank(image):
    return all(low == high for low, high in image.getextrema())


def _in_bytes(image):
    """Grey of more than 8 bits as such of 8, which Pillow would cut off at 255."""
    from PIL import Image

    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # of a TIFF
        white = 2**bits - 1
    elif image.mode == "F" and low >= 0 and high <= 1:
        white = 1
    elif low >= 0 and high <= 255:
        return image
    else:
        raise ValueError(
            f"its pixels are numbers of 32 bits, from {low:g} to {high:g}, of which nobody knows "
            f"what is white: save it with 8 or 16 bits"
        )
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))
