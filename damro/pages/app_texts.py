"""What the app says: its head, and the Python that gives an answer again."""

from __future__ import annotations

from damro.methods.presets import has_preset, starting_preset
from damro.vision.sources import Source


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
