"""What can be clicked on the page: scenes whose content is known, and what DAMRO does to the captions of them.

What is said of the embedded models is what they do at their family's preset by greedy search, good and bad; the tests
ask them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from PIL import Image

from damro.tiny import checkpoint_of
from damro.tiny.captions import SHORT_PROMPT
from damro.tiny.scenes import scene

PROMPT: Final = SHORT_PROMPT
"""Asks for a caption; the embedded models know it, and it is the paper's own."""


class Outcome(NamedTuple):
    """What DAMRO does to the caption of one scene, in COCO's names.

    Attributes:
        gone: what the greedy caption alone names.
        came: what DAMRO's alone names.
        stays: what both name and the scene does not show.
    """

    gone: tuple[str, ...] = ()
    came: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()


OUTCOMES: Final[dict[str, dict[int, Outcome]]] = {
    "llava": {
        18: Outcome(gone=("boat",), came=("handbag",)),
        28: Outcome(gone=("scissors",), came=("toilet",)),
        10: Outcome(),
        13: Outcome(stays=("fork",)),
        14: Outcome(came=("giraffe",)),
        12: Outcome(gone=("toothbrush",)),
    },
    "flawed": {
        2: Outcome(gone=("bird",), came=("person",)),
        34: Outcome(gone=("bottle", "tennis racket")),
        10: Outcome(),
        20: Outcome(stays=("bottle",)),
        21: Outcome(came=("cat",)),
        12: Outcome(gone=("toilet",)),
    },
    "llava_next": {
        18: Outcome(gone=("boat",), came=("handbag",)),
        26: Outcome(gone=("sports ball",)),
        2: Outcome(),
        14: Outcome(stays=("giraffe",)),
        1: Outcome(came=("bear",)),
        12: Outcome(gone=("toothbrush",)),
    },
    "instructblip": {
        5: Outcome(gone=("person",)),
        20: Outcome(gone=("bottle",)),
        12: Outcome(),
        18: Outcome(stays=("boat",)),
        37: Outcome(came=("bottle",)),
        21: Outcome(gone=("dog",), stays=("horse",)),
    },
}
"""By checkpoint and scene of the test split."""


class Example(NamedTuple):
    """One scene to click on.

    Attributes:
        image: the picture.
        label: a few words.
        about: what the picture shows and, where it is known, what DAMRO does.
    """

    image: Image.Image
    label: str
    about: str


def list_examples(model: str, *, greedy: bool) -> list[Example]:
    """The examples for a model.

    Args:
        model: its name; what is known of the embedded ones is said of no other.
        greedy: whether answers are made by greedy search; nothing is known of drawn ones.

    Example:
        >>> for example in list_examples("tiny", greedy=True)[:3]:
        ...     print(f"{example.label} | {example.about}")
        helps: no boat | In the picture: umbrella, handbag. DAMRO drops boat (not there), adds handbag (there).
        helps: no scissors | In the picture: cup, person, toothbrush, toilet. DAMRO drops scissors (not there), adds ...
        no change | In the picture: cup, donut. DAMRO changes nothing.
        >>> list_examples("llava-hf/llava-1.5-7b-hf", greedy=True)[0][1:]
        ('scene 18', 'In the picture: umbrella, handbag.')
    """
    known = OUTCOMES.get(checkpoint_of(model) or "")
    examples = []
    for number, outcome in (known or OUTCOMES["llava"]).items():
        picture = scene("test", number)
        names = list(dict.fromkeys(thing.name for thing in picture.objects))
        label, about = f"scene {number}", f"In the picture: {', '.join(names)}."
        if known and greedy:
            label, about = _label(outcome, names), f"{about} DAMRO {_sentence(outcome, names)}."
        examples.append(Example(picture.image, label, about))
    return examples


def _label(outcome: Outcome, names: Sequence[str]) -> str:
    """The outcome in two or three words: harm before help, whatever else there is.

    Example:
        >>> _label(Outcome(gone=("dog",)), ["dog"]), _label(Outcome(stays=("boat",)), ["dog"])
        ('harms: no dog', 'no help: boat')
    """
    lost = [name for name in outcome.gone if name in names]
    added = [name for name in outcome.came if name not in names]
    if lost:
        return f"harms: no {lost[0]}"
    if added:
        return f"harms: {added[0]}"
    if outcome.gone:
        return f"helps: no {outcome.gone[0]}"
    return f"no help: {outcome.stays[0]}" if outcome.stays else "no change"


def _sentence(outcome: Outcome, names: Sequence[str]) -> str:
    """The outcome, with what is there and what is not.

    Example:
        >>> _sentence(Outcome(gone=("boat",), came=("cat",), stays=("kite",)), ["cat"])
        'drops boat (not there), adds cat (there), keeps kite (not there)'
    """
    does = (("drops", outcome.gone), ("adds", outcome.came), ("keeps", outcome.stays))
    told = [f"{verb} {name} ({'there' if name in names else 'not there'})" for verb, these in does for name in these]
    return ", ".join(told) or "changes nothing"
