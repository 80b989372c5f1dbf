from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from damro.images import ImageError, load_image


def picture(width: int = 80, height: int = 60) -> Image.Image:
    pixels = np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_images_open_without_torch() -> None:
    code = "import sys, damro.images; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_image_is_turned_upright_and_made_rgb(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    picture(80, 60).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("LA", (5, 4), (7, 200)).save(tmp_path / "grey.png")
    assert load_image(tmp_path / "turned.jpg").size == (60, 80)
    assert load_image(tmp_path / "grey.png").getpixel((0, 0)) == (7, 7, 7)


def test_images_that_do_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.png").write_text("no picture")
    picture().save(tmp_path / "whole.jpg")
    picture().save(tmp_path / "whole.png")
    for kind in ("jpg", "png"):
        data = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(data[: len(data) // 2])
    for name in ("text.png", "cut.jpg", "cut.png", "absent.png", "."):
        with pytest.raises(ImageError, match="image must be a file that Pillow can open, got"):
            load_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="image must be of a size that Pillow allows"):
        load_image(tmp_path / "whole.png")
