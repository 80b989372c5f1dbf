"""From an image's path to the picture a processor takes. Imports no torch."""

from __future__ import annotations

import io
import os
import stat

from PIL import Image, ImageOps

from damro.decoding.errors import DecodingError

NO_SUCH_FILE = "no such file"
"""How the message ends of an image that is not there."""

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_WHITE_IS_ZERO = 0
_WHITE = (255, 255, 255, 255)
_PROGRAMS = ("EPS",)
"""Formats that are programs: Pillow would start Ghostscript on them, whatever the file is called."""

MAX_PIXELS = 100_000_000
"""Pixels of the largest image that is opened. A file of some KB may hold any number of them; so many take 2 GB until
CLIP's processor has scaled them down."""
MAX_ASPECT = 200
"""How many times as long as wide an image may be. CLIP's processor resizes the short edge to 336 and keeps the shape
until it crops: a strip of 1x1000 takes 1 GB there, one of 100x20000 a quarter of it."""


class ImageError(DecodingError):
    """There is no such image, or it does not open."""


class ImageSizeError(ImageError):
    """The image has too many pixels, or is too long and thin."""


def load_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens an image, upright and in RGB, see :func:`to_rgb`.

    Its size is looked at before a pixel is decoded. Pillow's own limit stays in force.

    Args:
        path: the file; "tiny:3" is embedded test scene 3, unless there is a file called that.
        max_pixels: width times height at most.

    Raises:
        ImageSizeError: if it has more pixels, or is more than `MAX_ASPECT` times as long as wide.
        ImageError: if there is no such file, it is no regular one, no image, cut short, or is of a kind whose numbers
            say not what is white.
    """
    shown = repr(os.fspath(path))
    if (number := scene_number(path)) is not None:
        from damro.tiny.scenes import scene

        return scene("test", number).image
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would be waited for
            raise OSError("no regular file")
    except (OSError, ValueError) as error:  # a name with a NUL is none
        reason = NO_SUCH_FILE if isinstance(error, FileNotFoundError) else str(error)
        raise ImageError(f"image must be a file that Pillow can open, got {shown}: {reason}") from error
    return _open(path, shown, max_pixels)


def scene_number(path: str | os.PathLike[str]) -> int | None:
    """The number of the embedded scene that is meant; None for a file."""
    kind, colon, number = str(os.fspath(path)).partition(":")
    named = kind == "tiny" and bool(colon) and number.isascii() and number.isdigit()
    return int(number) if named and not os.path.lexists(path) else None


def read_image(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens an image whose file's bytes are at hand, as `load_image` does.

    Args:
        content: what the file would hold.
        name: what errors call it.
        max_pixels: width times height at most.

    Raises:
        ImageSizeError: see `load_image`.
        ImageError: see `load_image`.
    """
    return _open(io.BytesIO(content), repr(name), max_pixels)


def _open(source: str | os.PathLike[str] | io.BytesIO, shown: str, max_pixels: int) -> Image.Image:
    try:
        with Image.open(source) as image:
            if image.format in _PROGRAMS:
                raise OSError(f"{image.format} is a program and no picture")
            _check_size(*image.size, max_pixels)
            _check_tiff(image)
            return to_rgb(ImageOps.exif_transpose(image))
    except ImageError as error:
        raise type(error)(f"{error} ({shown})") from error
    except Image.DecompressionBombError as error:
        raise ImageSizeError(f"image must be of a size that Pillow allows, got {shown}: {error}") from error
    except Exception as error:  # a decoder throws anything: struct.error, TypeError, RuntimeError, ...
        # Of bytes, Pillow tells the address of the object that they are in.
        reason = str(error).partition(" <_io.BytesIO")[0] or type(error).__name__
        reason = NO_SUCH_FILE if isinstance(error, FileNotFoundError) else reason
        raise ImageError(f"image must be a file that Pillow can open, got {shown}: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB with 8 bits a channel, as every model's processor expects it.

    Of 16 bits the upper 8 are kept; Pillow's own conversion clips instead, which leaves a white sheet. What is
    transparent is laid on white.

    Args:
        image: any mode of Pillow's.

    Raises:
        ImageError: if it holds floats or numbers beyond 16 bits: what is white in it, nothing says.

    Example:
        >>> [to_rgb(Image.new(*kind)).getpixel((0, 0)) for kind in (("I;16", (1, 1), 40000), ("LA", (1, 1), (9, 0)))]
        [(156, 156, 156), (255, 255, 255)]
    """
    if image.mode == "F" or image.mode.startswith("I"):
        image = _narrow(image)
    if image.mode.endswith(("A", "a")) or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, _WHITE), above)
    return image.convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits in 8, and in LA where one of its values is transparent."""
    wide = image if image.mode == "F" else image.convert("I")
    low, high = wide.getextrema()
    # In 32 bits, small numbers may be those of 8 bits or a dark picture's of 16.
    fits = low >= 0 and high <= 0xFFFF and (image.mode != "I" or high > 0xFF)  # type: ignore[operator]
    if image.mode == "F" or not fits:
        raise ImageError(
            f"image must have 8 or 16 bits a channel, got Pillow's mode {image.mode!r} with values from {low:g} to "
            f"{high:g}, which say not what is white; scale it and save it with 8 bits"
        )
    grey = wide.point([value >> 8 for value in range(0x10000)], "L")
    clear = image.info.get("transparency")
    if clear is not None:
        grey.putalpha(wide.point([0 if value == clear else 255 for value in range(0x10000)], "L"))
    grey.info.pop("transparency", None)
    return grey


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageSizeError(
            f"image must have at most {max_pixels} pixels, got {width}x{height} = {width * height}; scale it down"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageSizeError(
            f"image must be at most {MAX_ASPECT} times as long as wide, got {width}x{height}; cut it into parts"
        )


def _check_tiff(image: Image.Image) -> None:
    """Refuses what Pillow gives out as 16 bits from black to white, and is not."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (8,))
    if max(bits) == 12 or (max(bits) == 16 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO):
        raise ImageError(
            f"image must have 8 or 16 bits a channel with white as the highest, got a TIFF of {max(bits)} bits "
            f"(photometric interpretation {tags.get(_PHOTOMETRIC)}); save it as PNG"
        )
