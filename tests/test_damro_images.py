from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from damro.images import MAX_ASPECT, MAX_PIXELS, ImageError, ImageSizeError, load_image, to_rgb
from damro.tiny import scene

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


def noise(*shape: int) -> Bytes:
    return np.random.default_rng(3).integers(0, 255, shape, dtype=np.uint8)


def picture(width: int = 80, height: int = 60) -> Image.Image:
    return Image.fromarray(noise(height, width, 3))


def pixels(image: Image.Image) -> Bytes:
    assert image.mode == "RGB"
    return np.asarray(image)


def tiff(bits: int, photometric: int, data: bytes) -> bytes:
    """A little-endian grey TIFF of 4 x 2 pixels in one strip."""
    entries = [(256, 4), (257, 2), (258, bits), (259, 1), (262, photometric), (273, 122), (277, 1), (278, 2)]
    entries.append((279, len(data)))
    packed = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + data


def test_images_open_without_torch() -> None:
    code = "import sys, damro.images; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_image_is_turned_upright_and_made_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    picture(80, 60).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (5, 4), 7).save(tmp_path / "grey.png")
    assert load_image(tmp_path / "turned.jpg").size == (60, 80)
    assert load_image(tmp_path / "grey.png").getpixel((0, 0)) == (7, 7, 7)


def test_sixteen_bits_give_the_picture_of_eight(tmp_path: Path) -> None:
    grey = scene("test", 0).image.convert("L")
    values = np.asarray(grey)
    wide = (values.astype(np.uint16) << 8) | noise(*values.shape)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(wide).save(tmp_path / name)
    (tmp_path / "grey.pgm").write_bytes(b"P5 96 96 65535\n" + wide.astype(">u2").tobytes())
    Image.fromarray(wide.astype(np.int32)).save(tmp_path / "long.tif")  # 32 bits of which 16 are used
    for name in ("grey.png", "grey.tif", "grey.pgm", "long.tif"):
        assert (pixels(load_image(tmp_path / name)) == pixels(grey.convert("RGB"))).all(), name
    assert round(float(pixels(load_image(tmp_path / "grey.png")).mean()), 1) == 155.1
    big_endian = Image.frombytes("I;16B", grey.size, wide.astype(">u2").tobytes())
    assert (pixels(to_rgb(big_endian)) == pixels(grey.convert("RGB"))).all()


def test_numbers_that_say_not_what_is_white_are_refused(tmp_path: Path) -> None:
    values = noise(2, 4)
    numbers = values.astype(int)
    for scale, kind in ((257 * 2, np.int32), (-1, np.int32), (1, np.int32), (1 / 255, np.float32)):
        Image.fromarray((numbers * scale).astype(kind)).save(tmp_path / "wide.tif")
        with pytest.raises(ImageError, match=r"8 or 16 bits a channel, got .* mode '[IF]' .*save it .* \('.*wide.tif'"):
            load_image(tmp_path / "wide.tif")
    sixteen = values.astype("<u2").tobytes()
    for bits, photometric, data in ((12, 1, bytes(12)), (16, 0, sixteen)):
        (tmp_path / "odd.tif").write_bytes(tiff(bits, photometric, data))
        with pytest.raises(ImageError, match=f"white as the highest, got a TIFF of {bits} bits"):
            load_image(tmp_path / "odd.tif")
    (tmp_path / "negative.tif").write_bytes(tiff(8, 0, values.tobytes()))  # Pillow inverts this one
    assert (pixels(load_image(tmp_path / "negative.tif"))[..., 0] == 255 - values).all()


def test_what_is_transparent_is_laid_on_white(tmp_path: Path) -> None:
    values, alpha = noise(4, 5, 3).astype(int), noise(4, 5, 1).astype(int)
    rgba = Image.fromarray(np.concatenate([values, alpha], -1).astype(np.uint8))
    rgba.save(tmp_path / "rgba.png")
    laid = (values * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(pixels(load_image(tmp_path / "rgba.png")) - laid).max() <= 1
    Image.new("LA", (5, 4), (7, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    grey = noise(4, 5)
    grey[0, 0] = 255 - grey[1, 1]
    one_clear = np.where(grey == grey[1, 1], 255, grey)
    for kind, image in (
        ("L", Image.fromarray(grey)),
        ("P", Image.fromarray(grey).convert("P")),
        ("I;16", Image.fromarray(grey.astype(np.uint16) * 257)),
    ):
        value = int(grey[1, 1]) * (257 if kind == "I;16" else 1)
        image.save(tmp_path / "hole.png", transparency=value)
        with Image.open(tmp_path / "hole.png") as saved:
            assert saved.mode == kind
        assert (pixels(load_image(tmp_path / "hole.png")) == one_clear[..., None]).all(), kind


def test_images_that_do_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("no picture")
    picture().save(tmp_path / "whole.jpg")
    picture().save(tmp_path / "whole.png")
    for kind in ("jpg", "png"):
        data = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(data[: len(data) // 2])
    for name in ("text.png", "cut.jpg", "cut.png", "absent.png", "a\0b", "a" * 300):
        with pytest.raises(ImageError, match="image must be a file that Pillow can open, got"):
            load_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="image must be of a size that Pillow allows"):
        load_image(tmp_path / "whole.png")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("fifo")
    for path, reason in (
        (tmp_path / "fifo", "no regular file"),
        (tmp_path / "link", "no regular file"),
        (tmp_path / "loop", "symbolic links"),
        (tmp_path, "no regular file"),
        (Path("/dev/zero"), "no regular file"),
    ):
        with pytest.raises(ImageError, match=f"image must be a file that Pillow can open, got .*{reason}"):
            load_image(path)


def test_whatever_a_decoder_throws_is_an_image_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Orientation, and a number of bits as a fraction, which Pillow reads and cannot write back: struct.error.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\x01\x02\0\x05\0\0\0\x01\0\0\0\x26" + bytes(
        4
    )
    picture().save(tmp_path / "exif.jpg", exif=exif + struct.pack(">II", 3, 2))
    header = b"DDS " + struct.pack("<4I", 124, 0x1007, 8, 8) + bytes(56) + struct.pack("<I", 32) + bytes(48)
    (tmp_path / "odd.dds").write_bytes(header + bytes(192))  # no known pixel format: NotImplementedError
    for name in ("exif.jpg", "odd.dds"):
        with pytest.raises(ImageError, match="Pillow can open, got .*: .+"):
            load_image(tmp_path / name)
    picture().save(tmp_path / "whole.png")
    for error in (struct.error("odd"), TypeError("odd"), RuntimeError("odd"), IndexError(), OverflowError("odd")):

        def broken(*_: object, failure: Exception = error, **__: object) -> None:
            raise failure

        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", broken)
        with pytest.raises(ImageError, match=f"got .*whole.png': (odd|{type(error).__name__})$"):
            load_image(tmp_path / "whole.png")


def claiming(width: int, height: int) -> bytes:
    """A PNG of so many pixels, of which none is there."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (head, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's own, at 89 megapixels
def test_the_size_is_looked_at_before_a_pixel_is(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    for size in ((10_000, 10_001), (1, MAX_PIXELS + 1)):
        path.write_bytes(claiming(*size))
        told = f"at most {MAX_PIXELS} pixels, got {size[0]}x{size[1]} = {size[0] * size[1]}; scale it down .*large.png"
        with pytest.raises(ImageSizeError, match=told):
            load_image(path)
    path.write_bytes(claiming(10_000, 10_000))
    with pytest.raises(ImageError, match="Pillow can open"):  # of a size that is taken, and then not there
        load_image(path)
    picture(80, 60).save(path)
    assert load_image(path, max_pixels=4800).size == (80, 60)
    with pytest.raises(ImageSizeError, match="at most 4799 pixels, got 80x60 = 4800"):
        load_image(path, max_pixels=4799)


def test_long_thin_strips_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    for size in ((1, 60_000), (60_000, 1), (2, 2 * MAX_ASPECT + 1)):
        path.write_bytes(claiming(*size))
        with pytest.raises(ImageSizeError, match=f"at most 200 times as long as wide, got {size[0]}x{size[1]}; cut it"):
            load_image(path)
    picture(2, 2 * MAX_ASPECT).save(path)
    assert load_image(path).size == (2, 400)
