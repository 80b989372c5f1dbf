"""What the embedded models know of words: enough to tell a user why an answer to other words is of no use."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from damro.tiny.captions import DETAIL_PROMPTS, QUESTION_FORMS, SHORT_PROMPTS

_CHECKPOINTS: Final = Path(__file__).parent / "checkpoints"
_SHOWN: Final = 3


def unknown_words(processor: Any, prompt: str) -> list[str]:
    """The words of a prompt that an embedded model reads as `<unk>`.

    Args:
        processor: of any model; others than the embedded ones know all words.
        prompt: the question or instruction, without what the chat template writes around it.

    Example:
        >>> from damro import tiny
        >>> processor = tiny.load()[1]
        >>> unknown_words(processor, "Describe this image."), unknown_words(processor, "How ugly is this image?")
        ([], ['How', 'ugly'])
    """
    tokenizer: Any = getattr(processor, "tokenizer", None)
    if tokenizer is None or _CHECKPOINTS not in Path(tokenizer.name_or_path).parents:
        return []
    read = tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False)
    spans = zip(read["input_ids"], read["offset_mapping"], strict=True)
    words = [prompt[start:end].strip() for token, (start, end) in spans if token == tokenizer.unk_token_id]
    return list(dict.fromkeys(words))


def advice(processor: Any, prompt: str) -> str | None:
    """What to tell of a prompt that an embedded model does not understand; None of any other.

    Example:
        >>> from damro import tiny
        >>> print(advice(tiny.load()[1], "Is there a yeti?"))
        the embedded model does not know 'yeti'; it knows 'Generate a short caption of this image.', ...
    """
    words = unknown_words(processor, prompt)
    if not words:
        return None
    prompts = [
        *SHORT_PROMPTS[:_SHOWN],
        *DETAIL_PROMPTS[:_SHOWN],
        *(form.format("a dog") for form in QUESTION_FORMS[:2]),
    ]
    return (
        f"the embedded model does not know {', '.join(map(repr, words))}; it knows "
        f"{', '.join(map(repr, prompts))} and COCO's 80 names of things"
    )
