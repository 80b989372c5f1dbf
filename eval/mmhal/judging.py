"""What MMHal-Bench's judge is asked with, and replies that other scripts recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from damro.eval.errors import AlignmentError, DataFormatError
from damro.eval.judged.prompts import Prompt, own_prompt, read_prompt
from damro.eval.judged.replies import Asked, Judgement
from damro.eval.mmhal.scoring import MmhalAnswer
from damro.eval.records import read_json, read_text

SCRIPT = "eval_gpt4.py of the data set Shengcao1006/MMHal-Bench"
MAX_TOKENS = 1024
"""Of a reply; the official script sets no limit, and a rating comes last."""
_HOLES = ("{}",) * 4
# SHA-256 of ``template`` in Eval/eval_gpt_mmhal.py of repository llava-rlhf/LLaVA-RLHF.
_OFFICIAL = "2c73d8c50f1740d000fae62cfeed103c2f7a5bcfa904b27e6e09900e7ce600cc"
OWN = own_prompt("""You grade how a vision-language model answered a question about an image. You cannot see the image.
You are told what it shows, by labels that may be incomplete, and how a person answered the question.

A hallucination is a claim about the image that contradicts what you are told, or that nothing in it supports: an
object that is not there, a wrong number, colour, place, action or text. What follows from the labels or from the
person's answer by common sense is none. An answer that admits not to know, or that is shorter than the person's, is
none either.

Labels of the image: {}

Question: {}

The person's answer: {}

The model's answer, which you grade:
{}

Give your reasons in one to three sentences. Then write a last line that holds the grade and nothing else, "Rating: N",
with one of these numbers for N:
6 no hallucination, and a rich answer with a sound analysis
5 no hallucination, and a rich answer
4 no hallucination, and an answer that tells something
3 no hallucination, and an answer that tells nothing
2 a hallucination, in an otherwise rich answer
1 a hallucination, in an answer that tells something otherwise
0 a hallucination, and nothing else told""")
"""This package's wording of the grades, which are the official ones."""


def load_prompt(path: str | None) -> Prompt:
    """Return the prompt of a file; None takes this package's.

    Raises:
        DataFormatError: The file cannot be read, or holds no prompt for this benchmark.
    """
    return OWN if path is None else read_prompt(path, "template", _HOLES, _OFFICIAL)


def ask_about(answers: Sequence[MmhalAnswer], prompt: Prompt) -> list[Asked]:
    """Return what the judge is asked about each answer: what the image shows, the question, the person's answer, it."""
    return [
        Asked(
            one.identifier,
            one.key,
            prompt.fill(
                *zip(_HOLES, (", ".join(one.asked.contents), one.asked.question, one.asked.gold, one.text), strict=True)
            ),
        )
        for one in answers
    ]


def is_official(path: Path | str) -> bool:
    """Whether a file holds the replies that the official script wrote: one JSON list."""
    return read_text(path).lstrip().startswith("[")


def read_official(path: Path | str, answers: Sequence[MmhalAnswer]) -> dict[str, Judgement]:
    """Read the replies that the official script wrote: chat completions in the order of the answers.

    Raises:
        DataFormatError: The file is no list of chat completions.
        AlignmentError: It has not one for each answer.
    """
    completions = read_json(path)
    replies = []
    for place, one in enumerate(completions, start=1):
        try:
            reply = one["choices"][0]["message"]["content"]
        except (LookupError, TypeError):
            reply = None
        if not isinstance(reply, str):
            raise DataFormatError(
                f"{path}, record {place}: must be a chat completion with a text, as {SCRIPT} writes them, got "
                f"{ascii(one)[:80]}"
            )
        replies.append(Judgement(reply))
    if len(replies) != len(answers):
        raise AlignmentError(
            f"{path}: replies of the official script must be one for each answer, since their order tells which is "
            f"whose, got {len(replies)} for {len(answers)} answers: give the answers that were judged"
        )
    return {one.identifier: reply for one, reply in zip(answers, replies, strict=True)}
