"""Image files into RGB squares, whatever camera, program or mishap made them.

Knows Pillow and its modes. Knows nothing of data sets, captions or caches: a `FileSource` is bytes in a file.
"""

from __future__ import annotations

import errno
import io
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from trainables.captioning.data.items import BadImage
from trainables.patience import AWAY

#: Most pixels that are decoded in full. JPEGs are decoded at 1/2, 1/4 or 1/8 where that is still larger than
#: needed, so panoramas pass; Pillow itself refuses files that declare over 179 million pixels (a zip bomb).
MAX_PIXELS = 90_000_000
#: What the system says where the image may well be read another time.
PASSING = AWAY | {errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True)
class FileSource:
    """An image file, or a range of bytes in an uncompressed tar."""

    path: Path
    bytes: int
    """Length of the file or range."""
    mtime_ns: int
    offset: int | None = None
    """First byte of the range; None: the whole file."""

    @classmethod
    def of(cls, path: Path) -> FileSource:
        """The whole file at `path`.

        Raises:
            FileNotFoundError: where there is none.
        """
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns)

    def identity(self) -> list[Any]:
        """Length, time of change and place; not the folder, so that moved data keep their cache."""
        return [self.path.name, self.bytes, self.mtime_ns, self.offset]

    def pixels(self, size: int) -> NDArray[np.uint8]:
        """Decode to uint8 [size, size, 3].

        Raises:
            BadImage: as `decode`, or there is no such file any more.
            OSError, MemoryError: it cannot be read now, as where permission or a server is missing: that may
            pass.
        """
        try:
            with self.path.open("rb") as file:
                if self.offset is None:
                    return decode(file, size)
                file.seek(self.offset)
                return decode(io.BytesIO(file.read(self.bytes)), size)
        except MemoryError as error:
            raise MemoryError(f"{self.path}: not enough memory to decode it") from error
        except OSError as error:
            if error.errno in PASSING:
                raise OSError(error.errno, error.strerror, str(self.path)) from error
            raise BadImage(f"cannot be opened: {error.strerror or error}") from error


def decode(file: IO[bytes], size: int) -> NDArray[np.uint8]:
    """The image as an upright RGB square: shorter side resized to `size` pixels, centre cropped.

    Any mode Pillow reads: CMYK, palette, 16-bit and alpha (composed over white) included; of an animation the
    first frame; turned as its EXIF orientation says.

    Returns:
        uint8 [size, size, 3].

    Raises:
        BadImage: not an image, truncated, or too many pixels.
        OSError, MemoryError: the file cannot be read now.
    """
    try:
        image: Image.Image = Image.open(file)
        image.draft(None, (2 * size, 2 * size))  # JPEG only; twice the size keeps the resize sharp
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadImage(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
        image.load()
        return square(image, size)
    except UnidentifiedImageError:
        empty = file.seek(0, io.SEEK_END) == 0
        raise BadImage("empty file" if empty else "not an image in a known format") from None
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"too many pixels: {error}") from error
    except Exception as error:  # on broken files Pillow raises OSError, SyntaxError, struct.error, …
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in PASSING):
            raise
        raise BadImage(str(error) or type(error).__name__) from error


def square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """An opened image as `decode` would return it: uint8 [size, size, 3]."""
    return np.asarray(_square(_rgb(_upright(image)), size))


def _upright(image: Image.Image) -> Image.Image:
    """Turn as EXIF says; a photo with broken EXIF is still a photo and stays as it lies."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # more than 8 bits a channel: convert() would clip, not scale
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        peak = float(values.max(initial=0))
        # I;16 uses its whole range. I and F do not say theirs: the smallest usual one that holds the values.
        full = (
            65535.0
            if image.mode.startswith("I;16")
            else next((r for r in (1, 255, 65535) if peak <= r), peak)
        )
        return Image.fromarray((values.clip(0) * (255 / full)).round().clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _square(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
