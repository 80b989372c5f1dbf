"""From an image's path to the picture a processor takes. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, ImageOps

from damro.decoding.errors import DecodingError


class ImageError(DecodingError):
    """There is no such image, or it does not open."""


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Opens an image, upright and in RGB.

    Pillow's limit on the number of pixels stays in force.

    Raises:
        ImageError: if there is no such file, it is no image, it is cut short, or it has too many pixels.
    """
    try:
        with Image.open(Path(path)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except Image.DecompressionBombError as error:
        raise ImageError(f"image must be of a size that Pillow allows, got {str(path)!r}: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise ImageError(f"image must be a file that Pillow can open, got {str(path)!r}: {reason}") from error
