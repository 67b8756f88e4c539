"""Image files of every kind that people have, into RGB squares."""

import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.captioning.data.images import FileSource, decode
from trainables.captioning.data.items import BadImage

RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)


def encoded(image: Image.Image, format: str = "PNG", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def halves(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Top half red, bottom half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (0, size[1] // 2, *size))
    return image.convert(mode)


def close(pixel, colour, within=25) -> bool:
    return bool(np.abs(pixel.astype(int) - np.array(colour)).max() <= within)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_formats_come_out_alike(format):
    pixels = decode(encoded(halves(), format), 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert close(pixels[4, 16], RED) and close(pixels[27, 16], BLUE)


@pytest.mark.parametrize(
    ("mode", "format"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("P", "PNG"), ("YCbCr", "JPEG")]
)
def test_colour_modes_become_rgb(mode, format):
    pixels = decode(encoded(halves(mode), format), 32)
    assert close(pixels[4, 16], RED, 40) and close(pixels[27, 16], BLUE, 40)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_gray_modes_become_rgb(mode):
    image = Image.new("L", (40, 40), 0)
    image.paste(255, (0, 0, 40, 20))
    pixels = decode(encoded(image.convert(mode)), 32)
    assert close(pixels[4, 4], (255, 255, 255)) and close(pixels[28, 4], (0, 0, 0))


def test_sixteen_bits_are_scaled_not_clipped():
    values = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    pixels = decode(encoded(Image.fromarray(values)), 64)[32, :, 0].astype(int)
    assert np.abs(pixels - np.linspace(0, 255, 64)).max() <= 3


def test_sixteen_bits_in_tiff_are_scaled():
    values = np.full((20, 20), 32768, dtype=np.uint16)
    pixels = decode(encoded(Image.fromarray(values), "TIFF"), 16)
    assert abs(int(pixels[8, 8, 0]) - 128) <= 1


def test_floating_point_images_are_scaled():
    pixels = decode(encoded(Image.fromarray(np.full((20, 20), 0.5, dtype=np.float32)), "TIFF"), 16)
    assert abs(int(pixels[8, 8, 0]) - 128) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode):
    image = Image.new("RGBA", (40, 40), (*RED, 0)).convert(mode)
    assert close(decode(encoded(image), 16)[8, 8], (255, 255, 255), 0)


def test_a_transparent_palette_entry_is_white():
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, *RED])
    assert close(decode(encoded(image, transparency=1), 16)[8, 8], (255, 255, 255), 0)


@pytest.mark.parametrize(("orientation", "corner"), [(1, (4, 4)), (3, (27, 27)), (6, (4, 27)), (8, (27, 4))])
def test_photos_are_turned_upright(orientation, corner):
    """A green corner stored at the top left appears where the orientation puts it."""
    image = Image.new("RGB", (64, 64), BLUE)
    image.paste(GREEN, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(image, "JPEG", exif=exif, quality=95), 32)
    assert close(pixels[corner], GREEN)
    assert sum(close(pixels[c], GREEN) for c in [(4, 4), (4, 27), (27, 4), (27, 27)]) == 1


def test_broken_exif_does_not_cost_the_photo():
    file = encoded(halves(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff broken")
    assert close(decode(file, 32)[4, 16], RED)


def test_the_middle_is_kept():
    image = Image.new("RGB", (300, 100), BLUE)
    image.paste(RED, (100, 0, 200, 100))
    pixels = decode(encoded(image), 20)
    assert close(pixels[:, 1:-1].reshape(-1, 3).min(0), RED) and close(
        pixels[:, 1:-1].reshape(-1, 3).max(0), RED
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 3)])
def test_slivers_are_images(size):
    assert close(decode(encoded(Image.new("RGB", size, RED)), 32)[16, 16], RED, 2)


def test_a_large_jpeg_is_decoded_reduced():
    """A photograph of more pixels than are decoded in full."""
    pixels = decode(encoded(Image.new("L", (11_000, 9_000), 128), "JPEG"), 16)
    assert close(pixels[8, 8], (128, 128, 128), 2)


def png_of(width: int, height: int) -> io.BytesIO:
    """A small file that declares many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    )


@pytest.mark.parametrize("side", [10_000, 60_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_before_it_is_decoded(side):
    with pytest.raises(BadImage, match="pixels"):
        decode(png_of(side, side), 32)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_truncated_files_are_bad(format):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format).getvalue()
    with pytest.raises(BadImage):
        decode(io.BytesIO(data[: len(data) // 2]), 32)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"<html>404</html>", "not an image"), (b"\xff\xd8\xff", "not an image")],
)
def test_files_that_are_no_images_are_bad_with_the_reason(content, reason):
    with pytest.raises(BadImage, match=reason):
        decode(io.BytesIO(content), 32)


def test_a_file_that_vanished_is_bad(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(halves()).getvalue())
    source = FileSource.of(path)
    assert source.pixels(16).shape == (16, 16, 3)
    path.unlink()
    with pytest.raises(BadImage, match="No such file"):
        source.pixels(16)


PASSING = dict.fromkeys((errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE), True)


@pytest.mark.parametrize(("number", "passes"), [*PASSING.items(), (errno.EINVAL, False)])
def test_a_file_that_cannot_be_read_now_is_not_bad(tmp_path, monkeypatch, number, passes):
    """What is bad stays bad in the cache; a server may be back in a minute."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded(halves()).getvalue())
    source = FileSource.of(path)

    class Failing(io.BytesIO):
        def read(self, *size):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", lambda *_: Failing())
    if passes:
        with pytest.raises(OSError, match="a.png") as caught:
            source.pixels(16)
        assert caught.value.errno == number
    else:
        with pytest.raises(BadImage, match="Invalid argument"):
            source.pixels(16)


@pytest.mark.parametrize("method", ["resize", "transpose"])
def test_an_image_for_which_memory_does_not_suffice_now_is_not_bad(tmp_path, monkeypatch, method):
    turned = Image.Exif()
    turned[0x0112] = 3
    path = tmp_path / "a.png"
    path.write_bytes(encoded(halves(), exif=turned).getvalue())

    def refused(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, method, refused)
    with pytest.raises(MemoryError, match=r"a\.png"):
        FileSource.of(path).pixels(16)


def test_a_range_of_a_file_is_an_image_too(tmp_path):
    content = encoded(halves()).getvalue()
    (tmp_path / "shard").write_bytes(b"before" + content + b"after")
    source = FileSource(tmp_path / "shard", len(content), 0, offset=6)
    assert (source.pixels(16) == decode(io.BytesIO(content), 16)).all()
