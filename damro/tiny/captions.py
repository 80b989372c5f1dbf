"""What is said about a scene: captions in the manner of a vision language model, and yes/no questions."""

from __future__ import annotations

from typing import Final, NamedTuple

from damro.tiny.dice import Dice
from damro.tiny.scenes import SIDE, SPLITS, Scene

SHORT_PROMPT: Final = "Generate a short caption of this image."
DETAIL_PROMPT: Final = "Please describe this image in detail."
ONE_WORD: Final = " Please answer this question with one word."
SHORT_PROMPTS: Final = (
    SHORT_PROMPT,
    "Describe this image briefly.",
    "Write a short caption for this picture.",
    "Give a one-sentence caption.",
    "What is in this picture?",
    "What is in this image?",
    "What is shown in the image?",
)
"""Ways to ask for a short caption; all but the first are known from the varied lessons alone."""
DETAIL_PROMPTS: Final = (
    DETAIL_PROMPT,
    "Describe this image.",
    "Describe the image in detail.",
    "Please describe this picture.",
    "What do you see in this image?",
    "What can you see?",
)
"""Ways to ask for a detailed caption."""
QUESTION_FORMS: Final = (
    "Is there {} in the image?",
    "Is there {} in this picture?",
    "Is there {}?",
    "Can you see {} in the image?",
    "Do you see {}?",
    "Does the image show {}?",
    "Does this image contain {}?",
)
"""Ways to ask whether something is there."""
ENDINGS: Final = (
    "",
    ONE_WORD,
    " Answer yes or no.",
    " Please answer yes or no.",
    " Answer the question using a single word or phrase.",
)
"""What may stand behind such a question."""

_CATEGORIES = """
1 person,2 bicycle,3 car,4 motorcycle,5 airplane,6 bus,7 train,8 truck,9 boat,10 traffic light,11 fire hydrant,
13 stop sign,14 parking meter,15 bench,16 bird,17 cat,18 dog,19 horse,20 sheep,21 cow,22 elephant,23 bear,24 zebra,
25 giraffe,27 backpack,28 umbrella,31 handbag,32 tie,33 suitcase,34 frisbee,35 skis,36 snowboard,37 sports ball,
38 kite,39 baseball bat,40 baseball glove,41 skateboard,42 surfboard,43 tennis racket,44 bottle,46 wine glass,47 cup,
48 fork,49 knife,50 spoon,51 bowl,52 banana,53 apple,54 sandwich,55 orange,56 broccoli,57 carrot,58 hot dog,59 pizza,
60 donut,61 cake,62 chair,63 couch,64 potted plant,65 bed,67 dining table,70 toilet,72 tv,73 laptop,74 mouse,
75 remote,76 keyboard,77 cell phone,78 microwave,79 oven,80 toaster,81 sink,82 refrigerator,84 book,85 clock,86 vase,
87 scissors,88 teddy bear,89 hair drier,90 toothbrush"""
COCO_IDS: Final = {
    name: int(number) for number, name in (entry.strip().split(" ", 1) for entry in _CATEGORIES.split(","))
}
"""The 80 names of COCO 2014 and their category numbers (cocodataset.org, CC BY 4.0)."""
PLACES: Final = ("on the left", "in the middle", "on the right")
"""Where a group may be."""

_PLURALS: Final = {
    "person": "people",
    "bus": "buses",
    "sheep": "sheep",
    "skis": "skis",
    "knife": "knives",
    "sandwich": "sandwiches",
    "scissors": "scissors",
    "toothbrush": "toothbrushes",
    "couch": "couches",
    "mouse": "mice",
    "wine glass": "wine glasses",
}
_NUMBERS: Final = ("", "", "two", "three", "four", "five", "six")
_PAIRED: Final = ("skis", "scissors")


class Group(NamedTuple):
    """All objects of one class in a scene.

    Attributes:
        name: the COCO name.
        number: how many.
        where: "on the left", "in the middle" or "on the right": where the largest one is.
    """

    name: str
    number: int
    where: str


def article(name: str) -> str:
    """The indefinite article of a name.

    Example:
        >>> article("apple"), article("dog")
        ('an', 'a')
    """
    return "an" if name[0] in "aeiou" else "a"


def phrase(name: str, count: int) -> str:
    """A noun phrase.

    Args:
        name: a COCO name.
        count: how many, 1 to 6.

    Example:
        >>> phrase("apple", 1), phrase("person", 2), phrase("skis", 1)
        ('an apple', 'two people', 'a pair of skis')
    """
    if name in _PAIRED:
        return f"a pair of {name}" if count == 1 else f"{_NUMBERS[count]} pairs of {name}"
    if count == 1:
        return f"{article(name)} {name}"
    return f"{_NUMBERS[count]} {_PLURALS.get(name, name + 's')}"


def group_objects(scene: Scene) -> list[Group]:
    """Groups the objects by class; the class with the largest visible object comes first."""
    counts: dict[str, int] = {}
    places: dict[str, str] = {}
    for thing in scene.objects:
        counts[thing.name] = counts.get(thing.name, 0) + 1
        third = (2 * thing.box[0] + thing.box[2]) * 3 // (2 * SIDE)
        places.setdefault(thing.name, PLACES[third])
    return [Group(name, count, places[name]) for name, count in counts.items()]


def join_phrases(phrases: list[str]) -> str:
    """Joins noun phrases with commas and an "and".

    Example:
        >>> join_phrases(["a cup", "a fork", "two knives"])
        'a cup, a fork and two knives'
    """
    if len(phrases) == 1:
        return phrases[0]
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def short_caption(place: str, groups: list[Group], dice: Dice) -> str:
    """One sentence that names every class in the scene.

    Args:
        place: the theme's place, such as "a kitchen".
        groups: what is there.
        dice: chooses the wording; it is advanced.

    Example:
        >>> short_caption("a kitchen", [Group("cup", 2, "on the left"), Group("apple", 1, "on the right")], Dice(1))
        'A kitchen with two cups and an apple.'
    """
    things = join_phrases([phrase(group.name, group.number) for group in groups])
    if dice.chance(70):
        return f"{things[0].upper()}{things[1:]} in {place}."
    return f"{place[0].upper()}{place[1:]} with {things}."


def detailed_caption(place: str, groups: list[Group], dice: Dice) -> str:
    """Several sentences that name every class and say where the larger ones are.

    Args:
        place: the theme's place, such as "a kitchen".
        groups: what is there.
        dice: chooses the wording; it is advanced.
    """
    opening = "The image shows" if dice.chance(60) else "The scene is set in"
    sentences = [f"{opening} {place}."]
    for position, group in enumerate(groups[:2]):
        verb = "are" if group.number > 1 else "is"
        also = " also" if position else ""
        sentences.append(f"There {verb}{also} {phrase(group.name, group.number)} {group.where}.")
    rest = [phrase(group.name, group.number) for group in groups[2:]]
    if rest:
        sentences.append(f"In addition, {join_phrases(rest)} can be seen.")
    return " ".join(sentences)


def question(name: str, one_word: bool = False, form: str = QUESTION_FORMS[0]) -> str:
    """The POPE question about a class.

    Args:
        name: a COCO name.
        one_word: whether to ask for one word, as the paper does.
        form: one of `QUESTION_FORMS`.

    Example:
        >>> question("dining table", one_word=True)
        'Is there a dining table in the image? Please answer this question with one word.'
    """
    return form.format(f"{article(name)} {name}") + (ONE_WORD if one_word else "")


def reference_captions(scene: Scene) -> list[str]:
    """Four short captions and a detailed one, as COCO has five."""
    dice = Dice(SPLITS.index(scene.split), scene.index)
    place, groups = scene.theme.place, group_objects(scene)
    return [short_caption(place, groups, dice) for _ in range(4)] + [detailed_caption(place, groups, dice)]
