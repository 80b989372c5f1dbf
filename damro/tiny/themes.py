"""What the scenes are about: fifteen themes, their object weights, and which objects come in pairs.

The weights make the co-occurrence that a small language model learns as a prior, and later hallucinates from.
"""

from __future__ import annotations

from typing import NamedTuple

Colour = tuple[int, int, int]


class Theme(NamedTuple):
    """A kind of scene.

    Attributes:
        name: one word, used by nothing but people.
        place: how a caption names it, after "the image shows".
        top: colour of the upper part.
        bottom: colour of the lower part.
        pattern: what the lower part has: "plain", "stripes" or "tiles".
        weights: COCO name -> weight.
    """

    name: str
    place: str
    top: Colour
    bottom: Colour
    pattern: str
    weights: dict[str, int]


def _weights(text: str) -> dict[str, int]:
    """Reads ``name weight, name weight, ...``."""
    pairs = (entry.strip().rsplit(" ", 1) for entry in text.split(","))
    return {name: int(weight) for name, weight in pairs}


THEMES: tuple[Theme, ...] = (
    Theme(
        "street",
        "a busy street",
        (150, 185, 215),
        (120, 120, 125),
        "stripes",
        _weights(
            "car 10, person 9, traffic light 6, bus 4, truck 4, bicycle 4, motorcycle 4, stop sign 3, handbag 2, "
            "backpack 2, umbrella 2, dog 2"
        ),
    ),
    Theme(
        "park",
        "a green park",
        (165, 205, 235),
        (110, 165, 85),
        "plain",
        _weights(
            "person 9, dog 6, bird 5, frisbee 5, kite 4, sports ball 4, bicycle 3, skateboard 4, backpack 2, cat 1"
        ),
    ),
    Theme(
        "beach",
        "a sandy beach",
        (120, 190, 225),
        (228, 208, 155),
        "plain",
        _weights("person 8, umbrella 7, boat 5, kite 4, bird 4, sports ball 3, bottle 2, frisbee 2, handbag 2"),
    ),
    Theme(
        "zoo",
        "a zoo",
        (190, 205, 170),
        (175, 150, 105),
        "plain",
        _weights("elephant 7, zebra 7, giraffe 7, bear 5, bird 4, person 5, backpack 1, horse 1"),
    ),
    Theme(
        "farm",
        "a farm",
        (180, 215, 240),
        (160, 150, 70),
        "stripes",
        _weights("cow 7, sheep 7, horse 6, dog 4, truck 4, bird 3, person 4, cat 2, apple 1"),
    ),
    Theme(
        "kitchen",
        "a kitchen",
        (235, 225, 200),
        (190, 160, 130),
        "tiles",
        _weights(
            "bowl 7, knife 6, spoon 5, cup 4, bottle 3, apple 4, banana 4, orange 3, broccoli 4, carrot 4, clock 2, "
            "potted plant 2, person 2"
        ),
    ),
    Theme(
        "restaurant",
        "a restaurant",
        (130, 70, 70),
        (215, 195, 190),
        "plain",
        _weights(
            "wine glass 7, fork 7, knife 5, pizza 5, cake 4, spoon 3, bottle 4, cup 3, chair 4, person 5, sandwich 3"
        ),
    ),
    Theme(
        "cafe",
        "a snack bar",
        (245, 205, 170),
        (150, 110, 85),
        "stripes",
        _weights("hot dog 6, donut 7, cup 7, sandwich 5, cake 4, bottle 3, person 4, cell phone 2, orange 2, apple 2"),
    ),
    Theme(
        "living room",
        "a living room",
        (215, 200, 225),
        (165, 120, 85),
        "stripes",
        _weights(
            "couch 8, tv 7, chair 5, potted plant 5, cat 4, dog 3, book 4, clock 3, vase 5, person 3, teddy bear 1"
        ),
    ),
    Theme(
        "bedroom",
        "a bedroom",
        (190, 205, 230),
        (200, 175, 165),
        "plain",
        _weights("bed 9, teddy bear 6, book 5, clock 4, cell phone 3, cat 3, laptop 3, vase 2, tie 3, chair 1"),
    ),
    Theme(
        "bathroom",
        "a bathroom",
        (205, 235, 235),
        (150, 190, 195),
        "tiles",
        _weights("toilet 8, toothbrush 8, scissors 4, bottle 4, cup 3, potted plant 3, cat 1, person 2"),
    ),
    Theme(
        "office",
        "an office",
        (225, 225, 215),
        (140, 145, 160),
        "tiles",
        _weights(
            "laptop 7, keyboard 7, mouse 6, cell phone 4, book 4, cup 3, chair 4, tie 3, scissors 3, clock 2, person 4"
        ),
    ),
    Theme(
        "station",
        "a station",
        (185, 190, 200),
        (155, 150, 140),
        "tiles",
        _weights(
            "train 7, suitcase 7, person 8, airplane 5, bus 3, backpack 4, handbag 4, clock 2, tie 1, cell phone 1"
        ),
    ),
    Theme(
        "snow",
        "a snowy hill",
        (175, 205, 235),
        (238, 242, 250),
        "plain",
        _weights("skis 9, person 9, backpack 4, dog 2, bird 1, bear 1"),
    ),
    Theme(
        "court",
        "a sports court",
        (95, 140, 185),
        (190, 110, 80),
        "stripes",
        _weights("tennis racket 9, sports ball 8, person 7, bottle 3, backpack 2, frisbee 1, chair 1"),
    ),
)

# After one of these, the other follows with the given chance in percent.
PAIRS: dict[str, tuple[str, int]] = {
    "fork": ("knife", 65),
    "knife": ("fork", 30),
    "keyboard": ("mouse", 70),
    "mouse": ("keyboard", 60),
    "laptop": ("mouse", 35),
    "couch": ("tv", 50),
    "tv": ("couch", 40),
    "bed": ("teddy bear", 45),
    "toilet": ("toothbrush", 50),
    "traffic light": ("car", 60),
    "skis": ("person", 70),
    "tennis racket": ("sports ball", 65),
    "suitcase": ("person", 45),
    "elephant": ("zebra", 35),
    "zebra": ("giraffe", 45),
    "cow": ("sheep", 40),
    "sheep": ("dog", 30),
    "wine glass": ("bottle", 40),
    "boat": ("bird", 30),
    "bowl": ("spoon", 50),
    "dog": ("frisbee", 20),
    "bicycle": ("person", 45),
    "motorcycle": ("person", 40),
    "skateboard": ("person", 55),
    "kite": ("person", 45),
    "donut": ("cup", 45),
    "banana": ("apple", 35),
    "broccoli": ("carrot", 50),
}
