"""One image file as pixels: sound files are read as a person sees them, whatever their kind; others get one line."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.common.datasets import pictures


def read(path):
    return np.asarray(pictures.load(path, 8).image)


def test_sixteen_bits_of_grey_are_scaled(tmp_path):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert np.array_equal(read(tmp_path / name)[..., 0], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize(("values", "white"), [(np.float32([[0, 0.5, 1]]), 255), (np.float32([[0, 100, 250]]), 250)])
def test_floats_of_either_scale_are_read(tmp_path, values, white):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert read(tmp_path / "a.tif")[0, -1].tolist() == [white] * 3


def test_numbers_that_are_no_grey_levels_are_refused_as_what_they_are(tmp_path):
    Image.fromarray(np.float32([[-3, 1e6]])).save(tmp_path / "a.tif")
    with pytest.raises(pictures.UnreadableError, match=r"from -3 to 1e\+06; save it"):
        read(tmp_path / "a.tif")


def exif(orientation, resolution=(72, 1)):
    ifd = struct.pack("<H", 2) + struct.pack("<HHII", 0x112, 3, 1, orientation)
    ifd += struct.pack("<HHII", 0x11A, 10, 1, 38) + struct.pack("<I", 0) + struct.pack("<ii", *resolution)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + ifd


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resolution", [(72, 1), (-1, 0)], ids=["sound", "odd"])
def test_a_camera_that_was_turned(tmp_path, orientation, resolution):
    """A white corner goes where EXIF says, also beside metadata that are out of range."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif(orientation, resolution), quality=95)
    seen = read(tmp_path / "a.jpg")
    tall = orientation > 4
    assert seen.shape[:2] == ((32, 16) if tall else (16, 32))
    corners = {"tl": seen[3, 3, 0], "tr": seen[3, -4, 0], "bl": seen[-4, 3, 0], "br": seen[-4, -4, 0]}
    expected = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    assert max(corners, key=lambda corner: int(corners[corner])) == expected and corners[expected] > 200


def test_transparent_images_are_laid_on_white(tmp_path):
    layers = np.zeros((4, 4, 4), np.uint8)
    layers[0, 0] = (10, 20, 30, 255)
    Image.fromarray(layers).save(tmp_path / "a.png")
    found = pictures.load(tmp_path / "a.png", 8)
    assert found.transparent and np.asarray(found.image)[0, 0].tolist() == [10, 20, 30]
    assert np.asarray(found.image)[3, 3].tolist() == [255, 255, 255]
    layers[..., 3] = 255
    Image.fromarray(layers).save(tmp_path / "b.png")
    assert not pictures.load(tmp_path / "b.png", 8).transparent


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "tif", "webp", "ppm", "tga", "pcx", "jp2", "ico"])
def test_every_ending_that_is_taken_for_an_image_is_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (16, 16), (200, 100, 50)).save(path)
    assert f".{suffix}" in pictures.suffixes()
    assert np.abs(read(path).astype(int) - (200, 100, 50)).max() <= 3


def test_a_large_jpeg_is_decoded_small(tmp_path):
    Image.new("RGB", (1600, 1200), (9, 99, 199)).save(tmp_path / "a.jpg")
    found = pictures.load(tmp_path / "a.jpg", 32)
    assert found.size == (1600, 1200) and min(found.image.size) >= 64 and max(found.image.size) <= 400


def test_the_size_is_read_before_the_pixels(tmp_path):
    """A few bytes that claim to be 60,000 x 60,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 1000)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(pictures.UnreadableError, match="pixels"):
        read(tmp_path / "a.png")


SOUND = {}
for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)).save(buffer, kind)
    SOUND[kind] = buffer.getvalue()


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(list(SOUND)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.floats(0, 1)
)
def test_mutated_files_are_read_or_refused(tmp_path, kind, changes, cut):
    """Whatever a file holds: pixels or one line, never another exception."""
    content = bytearray(SOUND[kind])
    for place, value in changes:
        content[int(place * (len(content) - 1))] = value
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(content[: max(1, int(cut * 1.2 * len(content)))])
    try:
        found = pictures.load(path, 8)
    except pictures.UnreadableError as error:
        assert "\n" not in str(error)
    else:
        assert found.image.mode == "RGB" and found.image.width * found.image.height <= pictures.LARGEST
