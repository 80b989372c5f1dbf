"""The two answers of the page: streamed, with the map and what the contrast took out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from threading import Event, Thread
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, TextIteratorStreamer

from damro.decoding.branches.encoder_decoder import returned_prompt
from damro.decoding.context import check_context
from damro.decoding.drawing import Sampling
from damro.errors import InputsError
from damro.figures import draw_overlay, suit_any_paper
from damro.images import load_image
from damro.inspection import inspect_contrast, inspect_vit, seen_image
from damro.loading import prepare_inputs
from damro.pages.app_texts import write_recipe
from damro.pages.explain import spell_token
from damro.pages.explain_page import taken_rows
from damro.processor import DAMROProcessor
from damro.vision.sources import SOURCE_NAMES

PROMPT_LIMIT = 2000  # characters
PIXEL_LIMIT = 25_000_000
_DPI = 110


class Progress(NamedTuple):
    """What is known of an answer so far.

    Attributes:
        greedy: the text without the contrast.
        damro: the text with it.
        picture: the map.
        taken: the rows of the table of what was taken out; empty before the end.
        code: the Python that gives the answer again.
        complete: whether nothing more comes.
    """

    greedy: str
    damro: str
    picture: Image.Image
    taken: list[list[Any]]
    code: str
    complete: bool = False


def answer_request(
    model: PreTrainedModel,
    processor: Any,
    name: str,
    image_path: str | None,
    prompt: str | None,
    alpha: float,
    beta: float,
    top_k: int,
    max_new_tokens: int,
    *,
    max_pixels: int = PIXEL_LIMIT,
    sampling: Sampling = Sampling(),  # noqa: B008
) -> Iterator[Progress]:
    """Answers one request bit by bit.

    Yields:
        All that is known so far.

    Raises:
        InputsError: if there is no image or no prompt, or one above `PROMPT_LIMIT` or longer than the model's context.
        ImageError: if the image does not open or has more pixels than `max_pixels`.
    """
    if image_path is None or not prompt or not prompt.strip():
        raise InputsError("image and prompt must both be given; choose a scene or upload an image, then ask")
    if len(prompt) > PROMPT_LIMIT:
        raise InputsError(f"prompt must have at most {PROMPT_LIMIT} characters, got {len(prompt)}; shorten it")
    recipe = write_recipe(name, prompt, alpha, beta, int(top_k), int(max_new_tokens))
    inputs = prepare_inputs(processor, [load_image(image_path, max_pixels=max_pixels)], [prompt], model)
    check_context(model, inputs, int(max_new_tokens))
    contrast = DAMROProcessor(model, inputs, alpha=alpha, beta=beta, top_k=int(top_k))
    picture = draw_attention(model, processor, inputs, contrast, name)
    greedy = damro = ""
    yield Progress(greedy, damro, picture, [], recipe)
    for greedy in stream_answer(model, processor, inputs, int(max_new_tokens), sampling.processors()):
        yield Progress(greedy, damro, picture, [], recipe)
    tokens: list[int] = []
    contrasted = [contrast, *sampling.processors()]
    for damro in stream_answer(model, processor, inputs, int(max_new_tokens), contrasted, tokens):
        yield Progress(greedy, damro, picture, [], recipe)
    taken = tell_taken(model, processor, inputs, contrast, tokens)
    yield Progress(greedy, damro, picture, taken, recipe, complete=True)


class _Stopper(StoppingCriteria):
    """Ends a generation that nobody waits for any more."""

    def __init__(self, stop: Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        return torch.full((len(input_ids),), self._stop.is_set(), device=input_ids.device, dtype=torch.bool)


def stream_answer(
    model: PreTrainedModel,
    processor: Any,
    inputs: Mapping[str, Any],
    max_new_tokens: int,
    processors: list[Any],
    tokens: list[int] | None = None,
) -> Iterator[str]:
    """Generates in a thread of its own and yields the text so far, whenever there is more.

    Args:
        model: the model.
        processor: its processor.
        inputs: one prompt.
        max_new_tokens: the longest answer.
        processors: logits processors.
        tokens: a list that gets the new tokens at the end.

    Raises:
        Exception: what ``generate`` raised.
    """
    streamer: Any = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop, failed, found = Event(), [], tokens if tokens is not None else []
    generator: Any = model

    def generate() -> None:
        try:
            ids: Tensor = generator.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                logits_processor=processors,
                streamer=streamer,
                stopping_criteria=[_Stopper(stop)],
            )
            found.extend(ids[0, returned_prompt(model, inputs).shape[1] :].tolist())
        except Exception as error:  # raised again below, in the thread that waits
            failed.append(error)
            streamer.end()

    thread = Thread(target=generate, daemon=True)
    thread.start()
    text = ""
    try:
        for piece in streamer:
            text += piece
            yield text.strip()
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


def draw_attention(
    model: PreTrainedModel, processor: Any, inputs: Mapping[str, Any], contrast: DAMROProcessor, name: str
) -> Image.Image:
    """The map that ranks the patches, with the outliers outlined."""
    layer = contrast.attention.layer
    seen = inspect_vit(model, inputs, layers=[layer], layer=layer, top_k=contrast.outliers.shape[1])
    figure = draw_overlay(
        seen_image(processor, inputs, model=model),
        seen.weights[0].view(*seen.grid),
        title=f"{SOURCE_NAMES[seen.source]}, layer {layer}, heads {seen.heads}, {name}",
        outliers=[(row, column) for row, column in seen.outliers.positions[0].tolist()],
    )
    buffer = io.BytesIO()
    suit_any_paper(figure).savefig(buffer, format="png", dpi=_DPI)
    return Image.open(buffer)


def tell_taken(
    model: PreTrainedModel, processor: Any, inputs: Mapping[str, Any], contrast: DAMROProcessor, tokens: list[int]
) -> list[list[Any]]:
    """The rows of the table of what was taken out."""
    steps = inspect_contrast(model, inputs, torch.tensor(tokens), contrast, candidates=1)
    tokenizer = processor.tokenizer
    spelled = [spell_token(tokenizer, token) for token in tokens]
    best = [[spell_token(tokenizer, token) for token in row] for row in steps.candidates.tolist()]
    return [list(row.values()) for row in taken_rows(steps, spelled, best)]
