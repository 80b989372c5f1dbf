"""A page to try DAMRO on: one model, two answers side by side, and what the contrast took out."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from threading import Event, Thread
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, TextIteratorStreamer

from damro.decoding.branches.encoder_decoder import returned_prompt
from damro.decoding.context import check_context
from damro.decoding.drawing import Sampling
from damro.decoding.families import family_of
from damro.errors import DecodingError, InputsError
from damro.figures import draw_overlay
from damro.hosts import OwnHostOnly
from damro.images import ImageError, ImageSizeError, load_image
from damro.inspection import inspect_contrast, inspect_vit, seen_image
from damro.loading import prepare_inputs
from damro.methods.presets import starting_preset
from damro.pages.app_texts import introduce, write_recipe
from damro.pages.explain import spell_token
from damro.pages.explain_page import taken_rows
from damro.processor import DAMROProcessor
from damro.tiny import scene
from damro.vision.sources import SOURCE_NAMES, resolve_source

# Gradio reads it when it is imported: nothing is reported to anybody.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
try:
    import gradio
    from starlette.middleware import Middleware
except ImportError as error:
    raise ImportError(
        "damro app needs the package gradio, which is not installed; pip install 'damro[app]'", name="gradio"
    ) from error

UPLOAD_LIMIT = "10mb"
PROMPT_LIMIT = 2000  # characters
PIXEL_LIMIT = 25_000_000
_NO_IMAGE = "The image does not open; choose a PNG or JPEG file."
_NO_SIZE = "The image is too large: at most {:,} pixels are taken, and no long thin strips."
_SCENES = 8
_DPI = 110
_QUEUE = 16
_TAKEN = ("place", "taken out", "full prompt", "outliers only", "said instead", "full prompt", "outliers only")
_FIRST_PROMPT = "Describe the image in detail."


def build_app(
    model: PreTrainedModel,
    processor: Any,
    name: str,
    *,
    max_pixels: int = PIXEL_LIMIT,
    sampling: Sampling = Sampling(),  # noqa: B008
) -> Any:
    """Lays out the page.

    Where the paper has no preset for the family, the fields stand at LLaVA's, and the page says so.

    Args:
        model: the one model that answers every visitor, one after another.
        processor: its processor.
        name: its name, for the reader and for the Python that can be copied.
        max_pixels: the largest image that is opened.
        sampling: how the tokens of both answers are drawn; greedy search without.

    Returns:
        A `gradio.Blocks`; :func:`serve_app` opens it.
    """
    kind, vision = str(model.config.model_type), model.config.vision_config
    defaults, source = starting_preset(kind), resolve_source(None, family_of(model).vision_tower(model))
    patches = (vision.image_size // vision.patch_size) ** 2
    plain = f"Sampling at {sampling.temperature:g}" if sampling.temperature else "Greedy search"
    scenes = [scene("test", number).image for number in range(_SCENES)]
    with gradio.Blocks(title="damro", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(introduce(name, kind, source))
        with gradio.Row():
            with gradio.Column():
                # The model is given the very file that was uploaded: Gradio converts none whose mode it is not told,
                # and the scenes travel as PNG instead of its lossy WebP.
                image = gradio.Image(
                    value=scenes[0], type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"],
                    label="Image", height=300, elem_id="image",
                )  # fmt: skip
                image.preprocess = _telling(image.preprocess, max_pixels)  # type: ignore[method-assign, assignment, unused-ignore]
                gallery = gradio.Gallery(
                    scenes,
                    format="png",
                    label="Embedded scenes",
                    columns=_SCENES // 2,
                    height=250,
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="scenes",
                )
                prompt = gradio.Textbox(_FIRST_PROMPT, label="Prompt", max_length=PROMPT_LIMIT, elem_id="prompt")
                ask = gradio.Button("Ask", variant="primary", elem_id="ask")
                alpha = gradio.Slider(0, 4, defaults.alpha, step=0.05, label="alpha", elem_id="alpha")
                beta = gradio.Slider(0.01, 1, defaults.beta, step=0.01, label="beta", elem_id="beta")
                top_k = gradio.Slider(1, patches, min(defaults.top_k, patches), step=1, label="top-k", elem_id="top-k")
                length = gradio.Slider(1, 256, 64, step=1, label="longest answer, in tokens", elem_id="length")
            with gradio.Column():
                with gradio.Row():
                    greedy = gradio.Textbox(label=plain, lines=6, elem_id="greedy")
                    damro = gradio.Textbox(label="With DAMRO", lines=6, elem_id="damro")
                picture = gradio.Image(
                    label=f"{SOURCE_NAMES[source]} and outlier patches",
                    show_label=False,
                    interactive=False,
                    format="png",
                    buttons=["download", "fullscreen"],
                    elem_id="map",
                )
                taken = gradio.Dataframe(
                    headers=list(_TAKEN), label="Taken out by the contrast", interactive=False, elem_id="taken"
                )
                code = gradio.Code(language="python", label="The same in Python", interactive=False, elem_id="code")

        def answer(*values: Any) -> Iterator[tuple[Any, ...]]:
            try:
                yield from answer_request(model, processor, name, *values, max_pixels=max_pixels, sampling=sampling)
            except ImageSizeError as error:
                raise gradio.Error(_NO_SIZE.format(max_pixels)) from error
            except ImageError as error:
                raise gradio.Error(_NO_IMAGE) from error
            except DecodingError as error:
                raise gradio.Error(str(error)) from error

        def choose(event: gradio.SelectData) -> Image.Image:
            chosen: Image.Image = scenes[event.index]
            return chosen

        gallery.select(choose, None, image, api_visibility="private")
        gradio.on(
            [ask.click, prompt.submit, alpha.release, beta.release, top_k.release],
            answer,
            inputs=[image, prompt, alpha, beta, top_k, length],
            outputs=[greedy, damro, picture, taken, code],
            trigger_mode="always_last",
            api_visibility="private",
        )
    page.queue(default_concurrency_limit=1, max_size=_QUEUE, api_open=False)
    return page


def _telling(preprocess: Callable[[Any], Any], max_pixels: int) -> Callable[[Any], Any]:
    """Gradio opens an upload before anybody else, and has no word for one that does not open."""

    def tell(payload: Any) -> Any:
        try:
            return preprocess(payload)
        except Image.DecompressionBombError as error:
            raise gradio.Error(_NO_SIZE.format(max_pixels)) from error
        except (OSError, ValueError, SyntaxError) as error:
            raise gradio.Error(_NO_IMAGE) from error

    return tell


def serve_app(page: Any, host: str = "127.0.0.1", port: int = 7860, *, block: bool = True) -> str:
    """Opens the page to visitors of one address.

    No file of this machine is served but what the page itself made or a visitor uploaded, whatever Gradio's variables
    in the environment say, and nothing is loaded from elsewhere. Requests must name one of the page's own hosts.

    Args:
        page: what :func:`build_app` returned.
        host: the address to listen on.
        port: the port.
        block: wait until interrupted.

    Returns:
        The page's address.

    Raises:
        OSError: if the port is taken.
    """
    os.environ.pop("GRADIO_ALLOWED_PATHS", None)  # Gradio takes it for an empty list
    theme = gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        max_file_size=UPLOAD_LIMIT,
        allowed_paths=[],
        app_kwargs={"middleware": [Middleware(OwnHostOnly, host=host)]},
        share=False,
        quiet=True,
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        theme=theme,
        prevent_thread_lock=True,
    )
    if block:
        page.block_thread()
    return str(address)


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
) -> Iterator[tuple[Any, ...]]:
    """Answers one request bit by bit.

    Yields:
        Greedy text, DAMRO's text, the map, the rows of what was taken out, the Python: all that is known so far.

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
    yield greedy, damro, picture, [], recipe
    for greedy in stream_answer(model, processor, inputs, int(max_new_tokens), sampling.processors()):
        yield greedy, damro, picture, [], recipe
    tokens: list[int] = []
    contrasted = [contrast, *sampling.processors()]
    for damro in stream_answer(model, processor, inputs, int(max_new_tokens), contrasted, tokens):
        yield greedy, damro, picture, [], recipe
    yield greedy, damro, picture, tell_taken(model, processor, inputs, contrast, tokens), recipe


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
    figure.savefig(buffer, format="png", dpi=_DPI)
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
