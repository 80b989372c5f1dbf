"""What the model that extracts objects is asked, and its replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from damro.eval.judged.prompts import Prompt, own_prompt, read_prompt
from damro.eval.judged.replies import Asked, Judgement, Judgements, JudgeReplyError, key_of
from damro.eval.objhal.words import Tagger, parse_names, read_names

SCRIPT = "eval_gpt_obj_halbench.py of repository RLHF-V/RLHF-V"
MAX_TOKENS = 512
"""Of a reply, as in the official script."""
SHORTEST = 4
"""Descriptions of fewer words name nothing, and are not asked about, as in the official script."""
_HOLES = ("{question}", "{answer}")
# SHA-256 of ``prompt_template`` in eval/eval_gpt_obj_halbench.py of repository RLHF-V/RLHF-V.
_OFFICIAL = "9d732f9b73a3cc965bee6eb163b8e5248e58bd9d382eb583e9ece59933e2b580"
OWN = own_prompt("""A model was shown an image and asked for a description of it. List the objects that the description
says are in the image. You cannot see the image: take the description for true.

The request: {question}

The description:
{answer}

Rules:
- List what can be seen and touched: people, animals, things. Leave out scenes, moods, light, actions and text.
- List nothing that the description says is absent, or that it only compares something with.
- Give each object as the description calls it, by its name alone, without colour, size, number, material or place.
- Reply with a JSON list of strings and nothing else, such as ["man", "dining table"], or [] if there is no object.""")
"""This package's wording."""


class ObjhalAnswer(NamedTuple):
    """What a model said of an image.

    Attributes:
        image: The image's key, see `damro.eval.chair.coco.image_key`.
        prompt: What the model was asked.
        text: The description.
    """

    image: str
    prompt: str
    text: str

    @property
    def key(self) -> str:
        """What a judgement of it is found by."""
        return key_of("objhal", self.prompt, self.text)

    @property
    def is_short(self) -> bool:
        """Whether it is too short to name anything."""
        return len(self.text.split()) < SHORTEST


def load_prompt(path: str | None) -> Prompt:
    """Return the prompt of a file; None takes this package's.

    Raises:
        DataFormatError: The file cannot be read, or holds no prompt for this benchmark.
    """
    return OWN if path is None else read_prompt(path, "prompt_template", _HOLES, _OFFICIAL)


def ask_about(answers: Sequence[ObjhalAnswer], prompt: Prompt) -> list[Asked]:
    """Return what is asked about each answer that is long enough."""
    return [
        Asked(one.image, one.key, prompt.fill(*zip(_HOLES, (one.prompt, one.text), strict=True)))
        for one in answers
        if not one.is_short
    ]


def read_objects_of(
    answers: Sequence[ObjhalAnswer], judgements: Judgements, tag: Tagger
) -> Mapping[str, Sequence[str] | None]:
    """Return the objects that the judge's replies name, by the image's key; None where the reply is of no use.

    Raises:
        EvalError: An answer has no judgement.
    """
    found = judgements.find({one.image: one.key for one in answers if not one.is_short})
    return {one.image: [] if one.is_short else _read(found[one.image], tag) for one in answers}


def _read(judgement: Judgement, tag: Tagger) -> list[str] | None:
    try:
        return None if judgement.reply is None else read_names(parse_names(judgement.reply), tag)
    except JudgeReplyError:  # of a file that somebody else wrote; it is counted
        return None
