"""One image file as pixels: whatever Pillow reads, upright, 8 bits a channel, of a size that is known beforehand."""

import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# Kinds that Pillow reads by itself, without calling another program
FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "TGA", "ICO", "PCX", "SGI", "AVIF")
LARGEST = 100_000_000  # pixels of one image: some 400 MB while it is read
ORIENTATION = 0x0112  # EXIF's tag; a camera that was turned says so there
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableError(Exception):
    """Why a file cannot be read as an image, for a person."""


class Picture(NamedTuple):
    """An upright RGB image; its size in the file, (width, height); whether it was transparent somewhere."""

    image: Image.Image
    size: tuple[int, int]
    transparent: bool


@cache
def suffixes() -> frozenset[str]:
    """The endings of files that are taken for images, in small letters."""
    Image.init()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)


def load(path: Path, side: int) -> Picture:
    """Read an image that will be resized to `side` pixels. The first one of a file that holds several.

    Raises UnreadableError for a file that is no image, damaged, above LARGEST, or whose numbers are no grey levels.
    """
    try:
        if not path.is_file():  # what is there might never end
            raise UnreadableError("no ordinary file, or a link that leads to none")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata: the pixels are what counts
            with Image.open(path, formats=FORMATS) as image:
                size = image.size
                if size[0] * size[1] > LARGEST:
                    raise UnreadableError(f"{size[0]}x{size[1]} pixels are more than {LARGEST:,}; make it smaller")
                image.draft(None, (2 * side, 2 * side))  # a large JPEG is decoded at a half or less, in a seventh
                upright, transparent = eight_bits(image)
                turn = TURNS.get(_orientation(image))
                return Picture(upright if turn is None else upright.transpose(turn), size, transparent)
    except (UnreadableError, PermissionError):
        raise
    except Image.DecompressionBombError:
        raise UnreadableError(f"more than {LARGEST:,} pixels; make it smaller") from None
    except MemoryError:
        raise UnreadableError("it needs more memory than there is") from None
    except Exception as error:  # Pillow raises a type of its own for each kind of damage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(f"no image, or a damaged one ({reason.removesuffix(f' {str(path)!r}')})") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged metadata of a sound image: taken as it lies
        return 1


def eight_bits(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image as RGB, laid on white where it is transparent, and whether it is so anywhere."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_grey_levels(np.asarray(image))).convert("RGB"), False
    if image.mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        layers = image.convert("RGBA")
        alpha = layers.getchannel("A").getextrema()
        if alpha != (255, 255):
            white = Image.new("RGBA", layers.size, "white")
            return Image.alpha_composite(white, layers).convert("RGB"), True
        return layers.convert("RGB"), False
    return image.convert("RGB"), False


def _grey_levels(values: np.ndarray) -> np.ndarray:
    """Grey of 16 bits, or of floats, as uint8: 65,535 and 1.0 are white. Whole numbers up to 255 are left as they are.

    Raises UnreadableError where the numbers are neither.
    """
    low, high = float(values.min()), float(values.max())
    if values.dtype == np.uint16 or (values.dtype.kind in "iu" and 255 < high <= 65_535 and low >= 0):
        return np.rint(values / 257).astype(np.uint8)
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(values * 255).astype(np.uint8)
    if low >= 0 and high <= 255:
        return np.rint(values).astype(np.uint8)
    raise UnreadableError(f"its grey levels run from {low:g} to {high:g}; save it with 8 or 16 bits a channel")
