"""Damaged image files from a seeded generator: whole files of every kind that Pillow writes, with mutations."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

from PIL import Image, features

from damro.tiny.scenes import scene

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_FORMATS = (">H", "<H", ">I", "<I", "B")
_PNG = b"\x89PNG\r\n\x1a\n"


def whole_files() -> dict[str, bytes]:
    """An image of every kind, by a name that says which."""
    rgb = scene("test", 1).image.resize((48, 36))
    exif = _exif()
    kinds: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "jpeg with exif": (rgb, {"format": "jpeg", "exif": exif, "comment": b"a comment"}),
        "jpeg progressive": (rgb, {"format": "jpeg", "progressive": True, "exif": exif}),
        "jpeg cmyk": (rgb.convert("CMYK"), {"format": "jpeg"}),
        "jpeg grey": (rgb.convert("L"), {"format": "jpeg", "dpi": (72, 72)}),
        "mpo": (rgb, {"format": "mpo", "save_all": True, "append_images": [rgb], "exif": exif}),
        "png": (rgb, {"format": "png", "exif": exif}),
        "png palette": (rgb.convert("P"), {"format": "png", "transparency": 3}),
        "png of 16 bits": (rgb.convert("I;16"), {"format": "png", "transparency": 40000}),
        "png with alpha": (rgb.convert("RGBA"), {"format": "png", "dpi": (72, 72)}),
        "png animated": (rgb, {"format": "png", "save_all": True, "append_images": [rgb.rotate(90)]}),
        "gif": (rgb.convert("P"), {"format": "gif", "transparency": 2}),
        "gif animated": (rgb, {"format": "gif", "save_all": True, "append_images": [rgb.rotate(90)]}),
        "tiff": (rgb, {"format": "tiff", "exif": exif}),
        "tiff of 16 bits": (rgb.convert("I;16"), {"format": "tiff"}),
        "tiff deflate": (rgb, {"format": "tiff", "compression": "tiff_adobe_deflate", "dpi": (72, 72)}),
        "tiff lzw": (rgb.convert("RGBA"), {"format": "tiff", "compression": "tiff_lzw"}),
        "tiff jpeg": (rgb, {"format": "tiff", "compression": "jpeg"}),
        "tiff fax": (rgb.convert("1"), {"format": "tiff", "compression": "group4"}),
        "bmp": (rgb, {"format": "bmp"}),
        "bmp palette": (rgb.convert("P"), {"format": "bmp"}),
        "ppm": (rgb, {"format": "ppm"}),
        "tga": (rgb.convert("RGBA"), {"format": "tga", "compression": "tga_rle"}),
        "pcx": (rgb, {"format": "pcx"}),
        "sgi": (rgb, {"format": "sgi"}),
        "dds": (rgb.convert("RGBA"), {"format": "dds"}),
        "ico": (rgb, {"format": "ico"}),
        "icns": (rgb.resize((64, 64)), {"format": "icns"}),
        "im": (rgb, {"format": "im"}),
        "eps": (rgb, {"format": "eps"}),
        "xbm": (rgb.convert("1"), {"format": "xbm"}),
        "msp": (rgb.convert("1"), {"format": "msp"}),
    }
    if features.check("webp"):
        kinds["webp"] = (rgb, {"format": "webp", "exif": exif})
        kinds["webp lossless"] = (rgb.convert("RGBA"), {"format": "webp", "lossless": True})
        kinds["webp animated"] = (rgb, {"format": "webp", "save_all": True, "append_images": [rgb.rotate(90)]})
    if features.check("jpg_2000"):
        kinds["jpeg 2000"] = (rgb, {"format": "jpeg2000"})
    if features.check("avif"):
        kinds["avif"] = (rgb, {"format": "avif", "exif": exif})
    return {name: _saved(image, options) for name, (image, options) in kinds.items()}


def _saved(image: Image.Image, options: dict[str, object]) -> bytes:
    content = io.BytesIO()
    image.save(content, **options)  # type: ignore[arg-type]
    return content.getvalue()


def _exif() -> bytes:
    """Orientation, texts, fractions, and a directory in the directory."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0102], exif[0x011A] = 6, "maker", 8, 72.0
    exif.get_ifd(0x8769).update({0x9003: "2020:01:01 00:00:00", 0x829A: 0.01, 0xA002: 48})
    return exif.tobytes()


def damaged(content: bytes, random_of: random.Random) -> bytes:
    """A file with one to six mutations; a PNG's checksums are set right again half of the time."""
    for _ in range(random_of.choice((1, 1, 1, 2, 3, 6))):
        content = random_of.choice(_MUTATIONS)(content, random_of)
    if content.startswith(_PNG) and random_of.random() < 0.7:
        content = _with_checksums(content)
    return content


def _place(content: bytes, random_of: random.Random) -> int:
    """A place in the file; half of the time in its head, which says how the rest is to be read."""
    end = min(len(content), 200) if random_of.random() < 0.5 else len(content)
    return random_of.randrange(max(end, 1))


def _flip(content: bytes, random_of: random.Random) -> bytes:
    if not content:
        return content
    changed = bytearray(content)
    changed[_place(content, random_of)] ^= 1 << random_of.randrange(8)
    return bytes(changed)


def _overwrite(content: bytes, random_of: random.Random) -> bytes:
    place = _place(content, random_of)
    junk = random_of.randbytes(random_of.randint(1, 12))
    return content[:place] + junk + content[place + len(junk) :]


def _number(content: bytes, random_of: random.Random) -> bytes:
    """One of the numbers at which programs go wrong."""
    form = random_of.choice(_FORMATS)
    size = struct.calcsize(form)
    place = _place(content, random_of)
    number = random_of.choice(_NUMBERS) & ((1 << 8 * size) - 1)
    return content[:place] + struct.pack(form, number) + content[place + size :]


def _cut(content: bytes, random_of: random.Random) -> bytes:
    return content[: random_of.randrange(len(content) + 1)]


def _delete(content: bytes, random_of: random.Random) -> bytes:
    place = _place(content, random_of)
    return content[:place] + content[place + random_of.randint(1, 64) :]


def _insert(content: bytes, random_of: random.Random) -> bytes:
    place = _place(content, random_of)
    return content[:place] + random_of.randbytes(random_of.randint(1, 32)) + content[place:]


def _repeat(content: bytes, random_of: random.Random) -> bytes:
    place = _place(content, random_of)
    part = content[place : place + random_of.randint(1, 128)]
    return content[:place] + part * random_of.randint(2, 6) + content[place:]


def _blank(content: bytes, random_of: random.Random) -> bytes:
    """A block that a broken disk filled with one value."""
    place = _place(content, random_of)
    size = random_of.randint(1, 256)
    return content[:place] + random_of.choice((b"\0", b"\xff")) * size + content[place + size :]


_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_flip, _flip, _overwrite, _number, _number, _number),
    *(_cut, _delete, _insert, _repeat, _blank),
)


def _with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold, so that it is looked at what they hold."""
    changed, place = bytearray(content), len(_PNG)
    while place + 12 <= len(changed):
        (length,) = struct.unpack_from(">I", changed, place)
        end = place + 8 + length
        if end + 4 > len(changed):
            break
        struct.pack_into(">I", changed, end, zlib.crc32(changed[place + 4 : end]))
        place = end + 4
    return bytes(changed)
