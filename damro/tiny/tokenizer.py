"""A word-level tokenizer for everything the tiny models read and say."""

from __future__ import annotations

from typing import Final

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from damro.tiny.captions import (
    COCO_IDS,
    DETAIL_PROMPT,
    DETAIL_PROMPTS,
    ENDINGS,
    ONE_WORD,
    PLACES,
    QUESTION_FORMS,
    SHORT_PROMPT,
    SHORT_PROMPTS,
    phrase,
)
from damro.tiny.themes import THEMES

SPECIALS: Final = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
"""Ids 0 to 4."""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %} ASSISTANT: {% else %}{% if not loop.first %} {% endif %}USER: {% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% if message.role == 'assistant' %}</s>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""The form of LLaVA-1.5: ``USER: <image>\\n... ASSISTANT:``."""

_SENTENCES = (
    "USER: ASSISTANT: Yes No, yes no. The image shows The scene is set in There is There are also "
    "In addition, can be seen. with and in Is there a an in the image? one two three four five six pairs of"
)
_PUNCTUATION = r"[.,:?!]"


def list_words(varied: bool = True) -> list[str]:
    """The vocabulary: special tokens, punctuation, then words with the mark of a word's beginning.

    Words that only the varied lessons have stand at the end, so that the ids of the others stay as they were.

    Args:
        varied: whether these are among them.

    Returns:
        Tokens in the order of their ids.

    Example:
        >>> list_words()[:6]
        ['<pad>', '<s>', '</s>', '<unk>', '<image>', '!']
    """
    texts = [_SENTENCES, SHORT_PROMPT, DETAIL_PROMPT, ONE_WORD, *PLACES]
    texts += [theme.place for theme in THEMES]
    texts += [phrase(name, count) for name in COCO_IDS for count in (1, 2)]
    first = _split(texts)
    later = _split([*SHORT_PROMPTS, *DETAIL_PROMPTS, *QUESTION_FORMS, *ENDINGS]) - first - {"{}"}
    words = [*SPECIALS, *"!,.:?", *sorted(f"▁{word}" for word in first)]
    return [*words, *sorted(f"▁{word}" for word in later)] if varied else words


def _split(texts: list[str]) -> set[str]:
    """The words of some texts, as they are and as they begin a sentence."""
    words = set(" ".join(texts).translate(str.maketrans(".,:?", "    ")).split())
    return words | {word[0].upper() + word[1:] for word in words}


def build_tokenizer(image_token: bool = True) -> PreTrainedTokenizerFast:
    """Builds the tokenizer.

    Args:
        image_token: whether it has an attribute ``image_token``. InstructBLIP's processor brings its own.

    Returns:
        A fast tokenizer that puts ``<s>`` first, pads on the left and gives its text back unchanged.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.decode(tokenizer("Is there a dog, in the image?").input_ids, skip_special_tokens=True)
        'Is there a dog, in the image?'
    """
    vocabulary = {word: number for number, word in enumerate(list_words())}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(_PUNCTUATION), "isolated")]
    )
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"} if image_token else {},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
