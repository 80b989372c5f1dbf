"""What the app says: its head, two answers and how they differ, and the Python that gives an answer again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from markupsafe import Markup, escape

from damro.methods.presets import has_preset, starting_preset
from damro.pages.explain import bare
from damro.vision.sources import Source

MEANINGS: Final = {
    "prompt": "A question or an instruction, such as: Describe this image. Is there a dog in the image?",
    "alpha": "How strongly what the outlier patches alone suggest is subtracted. 0 is the answer without DAMRO.",
    "beta": "Which words may be said at all: those at least this fraction as likely as the likeliest one.",
    "top-k": "How many patches count as outliers: those the vision tower attends to most, outlined in the map.",
    "length": "Where an answer is cut off.",
}
"""What every field means, in a line."""
BUSY: Final = "Answering …"
"""Said while the answers are being written."""


def introduce(name: str, family: str, source: Source) -> str:
    """The head of the page in Markdown, with what a model of this kind does otherwise than the paper's.

    Args:
        name: the model's name.
        family: its `config.model_type`.
        source: what ranks its patches.

    Example:
        >>> print(introduce("tiny", "llava", "cls"))
        # DAMRO
        Greedy search and DAMRO side by side, on **tiny**.
    """
    text = f"# DAMRO\nGreedy search and DAMRO side by side, on **{name}**."
    if source == "received":
        text += (
            "\n\nIts vision transformer has no [CLS]: patches are ranked by the attention they receive, which is not "
            "the paper's method."
        )
    if not has_preset(family):
        start = starting_preset(family)
        text += (
            f"\n\nThe paper has no preset for {family}: alpha, beta and top-k start at LLaVA's, {start.alpha:g}, "
            f"{start.beta:g} and {start.top_k}. Nothing was measured that would say they suit this model."
        )
    return text


def write_recipe(name: str, prompt: str, alpha: float, beta: float, top_k: int, max_new_tokens: int) -> str:
    """Python that gives DAMRO's answer again.

    Example:
        >>> print(write_recipe("tiny", "What's this?", 2.0, 0.1, 10, 64).splitlines()[4])
        inputs = prepare_inputs(processor, [load_image("image.png")], ["What's this?"], model)
    """
    return f"""from damro import DAMROProcessor, returned_prompt
from damro.loading import load_image, load_model, prepare_inputs

model, processor = load_model({name!r})
inputs = prepare_inputs(processor, [load_image("image.png")], [{prompt!r}], model)
contrast = DAMROProcessor(model, inputs, alpha={alpha!r}, beta={beta!r}, top_k={top_k!r})
ids = model.generate(**inputs, logits_processor=contrast, do_sample=False, max_new_tokens={max_new_tokens!r})
answer = ids[0, returned_prompt(model, inputs).shape[1]:]
print(processor.tokenizer.decode(answer, skip_special_tokens=True).strip())
"""


def only_words(text: str, other: str) -> list[str]:
    """The words of a text that are nowhere in another, each once, in lower case.

    Example:
        >>> only_words("A boat, a kite and a boat.", "A kite.")
        ['boat', 'and']
    """
    known = {bare(word) for word in other.split()} | {""}
    return list(dict.fromkeys(word for word in map(bare, text.split()) if word not in known))


def write_answer(title: str, text: str, other: str | None = None) -> str:
    """One answer in HTML, escaped; with the other one, words that this one alone has are marked.

    Example:
        >>> print(write_answer("Greedy search", "A boat & a kite.", "A kite."))
        <h3>Greedy search</h3><p>A <mark>boat</mark> &amp; a kite.</p>
    """
    only = set() if other is None else set(only_words(text, other))
    pieces = [
        Markup("<mark>{}</mark>").format(piece) if bare(piece) in only else escape(piece)
        for piece in re.split(r"(\s+)", text)
    ]
    return str(Markup("<h3>{}</h3><p>{}</p>").format(title, Markup("").join(pieces)))


def tell_difference(plain: str, greedy: str, damro: str) -> str:
    """The words that only one answer has, in a sentence of plain text.

    Args:
        plain: how the answer without the contrast was made.
        greedy: that answer.
        damro: the answer with it.

    Example:
        >>> tell_difference("Greedy search", "A boat.", "A kite.")
        'Greedy search alone says: boat. DAMRO alone says: kite.'
        >>> tell_difference("Greedy search", "A cat, a dog.", "A dog, a cat.")
        'Both use the same words, in another order or number.'
    """
    if greedy == damro:
        return "Both answers are the same."
    alone = ((plain, only_words(greedy, damro)), ("DAMRO", only_words(damro, greedy)))
    told = [f"{name} alone says: {', '.join(words)}." for name, words in alone if words]
    return " ".join(told) or "Both use the same words, in another order or number."


def write_taken(rows: Sequence[Sequence[Any]]) -> str:
    """The table of what the contrast took out, in HTML, escaped; empty without rows.

    Args:
        rows: step, token taken out, its shares by the full prompt and by the outliers only, and the same three of what
            was said instead.
    """
    if not rows:
        return ""
    head = Markup(
        "<table><caption>Taken out by the contrast, with the share by the full prompt / by the outliers only</caption>"
        "<thead><tr><th>token</th><th>taken out</th><th>said instead</th></tr></thead><tbody>{}</tbody></table>"
    )
    row = Markup("<tr><td>{}</td><td><b>{}</b> <small>{} / {}</small></td><td>{} <small>{} / {}</small></td></tr>")
    return str(head.format(Markup("").join(row.format(*values) for values in rows)))
