"""Renders the sprite atlas from Noto Color Emoji; needed only to make ``data/sprites.png`` anew.

``python -m damro.tiny.make_sprites NotoColorEmoji.ttf`` (Debian: ``fonts-noto-color-emoji``). The shipped atlas
was made with font version 2.042. The scenes read the atlas alone, so no font is needed to use or train the model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL = 64
COLUMNS = 12
STRIKE = 109  # the one bitmap size of the font, in pixels

# COCO name -> glyphs that show this object and nothing else of the 80. The other fifteen have none.
GLYPHS: dict[str, str] = {
    "person": "🧍🚶🏃👩👨👧👴",
    "bicycle": "🚲",
    "car": "🚗🚙🚕",
    "motorcycle": "🏍🛵",
    "airplane": "✈",
    "bus": "🚌🚍",
    "train": "🚆🚂",
    "truck": "🚚🛻",
    "boat": "⛵🚤🛥",
    "traffic light": "🚦",
    "stop sign": "🛑",
    "bird": "🐦🦆🦢",
    "cat": "🐈",
    "dog": "🐕🦮",
    "horse": "🐎",
    "sheep": "🐑",
    "cow": "🐄",
    "elephant": "🐘",
    "bear": "🐻",
    "zebra": "🦓",
    "giraffe": "🦒",
    "backpack": "🎒",
    "umbrella": "☂⛱",
    "handbag": "👜👛",
    "tie": "👔",
    "suitcase": "🧳",
    "frisbee": "🥏",
    "skis": "🎿",
    "sports ball": "⚽🏀",
    "kite": "🪁",
    "skateboard": "🛹",
    "tennis racket": "🎾",
    "bottle": "🍾🧴",
    "wine glass": "🍷",
    "cup": "☕🥤",
    "fork": "🍴",
    "knife": "🔪",
    "spoon": "🥄",
    "bowl": "🥗🍚",
    "banana": "🍌",
    "apple": "🍎🍏",
    "sandwich": "🥪",
    "orange": "🍊",
    "broccoli": "🥦",
    "carrot": "🥕",
    "hot dog": "🌭",
    "pizza": "🍕",
    "donut": "🍩",
    "cake": "🎂🍰",
    "chair": "🪑",
    "couch": "🛋",
    "potted plant": "🪴",
    "bed": "🛏",
    "toilet": "🚽",
    "tv": "📺🖥",
    "laptop": "💻",
    "mouse": "🖱",
    "keyboard": "⌨",
    "cell phone": "📱",
    "book": "📖📕📘",
    "clock": "⏰🕒",
    "vase": "🏺⚱",
    "scissors": "✂",
    "teddy bear": "🧸",
    "toothbrush": "🪥",
}
# Boxes (left, top, right, bottom) in cell pixels that hold a second object: the knife beside the fork, the ball
# beside the racket. They are wiped.
WIPED: dict[str, tuple[int, int, int, int]] = {"fork": (32, 0, 64, 64), "tennis racket": (0, 0, 25, 25)}


def draw_glyph(font: ImageFont.FreeTypeFont, name: str, glyph: str) -> Image.Image:
    """Draws one glyph, trims it and centres it in a cell.

    Args:
        font: Noto Color Emoji at its bitmap size.
        name: the COCO name, for `WIPED`.
        glyph: one emoji character.

    Returns:
        An RGBA image of 64 x 64 pixels.
    """
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((10, 10), glyph, font=font, embedded_color=True)
    tile = _fit(canvas)
    if name in WIPED:
        left, top, right, bottom = WIPED[name]
        tile.paste((0, 0, 0, 0), (left, top, right, bottom))
        tile = _fit(tile)
    return tile


def _fit(image: Image.Image) -> Image.Image:
    """The visible part of an image, scaled so that its longer side fills a cell."""
    trimmed = image.crop(image.getbbox())
    scale = CELL / max(trimmed.size)
    size = (max(1, round(trimmed.width * scale)), max(1, round(trimmed.height * scale)))
    trimmed = trimmed.resize(size, Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(trimmed, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def main(font_path: str) -> None:
    """Writes ``data/sprites.png`` and ``data/sprites.json`` (the COCO name of each cell, row by row).

    Args:
        font_path: the font file.
    """
    font = ImageFont.truetype(font_path, STRIKE)
    cells = [(name, glyph) for name, glyphs in GLYPHS.items() for glyph in glyphs]
    rows = -(-len(cells) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, (name, glyph) in enumerate(cells):
        corner = (index % COLUMNS * CELL, index // COLUMNS * CELL)
        atlas.paste(draw_glyph(font, name, glyph), corner)
    folder = Path(__file__).parent / "data"
    atlas.save(folder / "sprites.png", optimize=True)
    names = [name for name, _ in cells]
    (folder / "sprites.json").write_text(json.dumps({"cell": CELL, "names": names}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
