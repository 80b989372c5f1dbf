"""A page to try DAMRO on: one model, two answers side by side, and what the contrast took out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from html import escape
from importlib.resources import files
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from damro.decoding.drawing import Sampling
from damro.decoding.families import family_of
from damro.errors import DecodingError
from damro.hosts import OwnHostOnly
from damro.images import ImageError, ImageSizeError
from damro.methods.presets import starting_preset
from damro.pages.app_answers import PIXEL_LIMIT, PROMPT_LIMIT, answer_request
from damro.pages.app_examples import PROMPT, list_examples
from damro.pages.app_texts import BUSY, MEANINGS, introduce, tell_difference, write_answer, write_taken
from damro.tiny.known import advice
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
_NO_IMAGE = "The image does not open; choose a PNG or JPEG file."
_NO_SIZE = "The image is too large: at most {:,} pixels are taken, and no long thin strips."
_QUEUE = 16
_LENGTH = 64
_WITH = "With DAMRO"


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
    start = (defaults.alpha, defaults.beta, min(defaults.top_k, patches), _LENGTH)
    examples = list_examples(name, greedy=not sampling.temperature)
    with gradio.Blocks(title="damro", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(introduce(name, kind, source))
        # Beside each other where there is room; on a phone the style sheet orders the four parts in one column.
        with gradio.Row(elem_id="parts"):
            with gradio.Column(elem_classes="side"):
                with gradio.Column(elem_id="question"):
                    gallery = gradio.Gallery(
                        [(example.image, example.label) for example in examples], format="png", label="Examples",
                        columns=3, height="auto", allow_preview=False, interactive=False, buttons=[],
                        elem_id="scenes",
                    )  # fmt: skip
                    # The model is given the very file that was uploaded: Gradio converts none whose mode it is not
                    # told, and the scenes travel as PNG instead of its lossy WebP.
                    image = gradio.Image(
                        value=examples[0].image, type="filepath", image_mode=None, format="png",
                        sources=["upload", "clipboard"], label="Image", height=240, elem_id="image",
                    )  # fmt: skip
                    image.preprocess = _telling(image.preprocess, max_pixels)  # type: ignore[method-assign, assignment, unused-ignore]
                    about = gradio.HTML(escape(examples[0].about), elem_id="about")
                    prompt = gradio.Textbox(
                        PROMPT, label="Prompt", info=MEANINGS["prompt"], max_length=PROMPT_LIMIT, elem_id="prompt"
                    )
                    ask = gradio.Button("Ask", variant="primary", elem_id="ask")
                with gradio.Column(elem_id="settings"):
                    fields = [
                        gradio.Slider(low, high, value, step=step, label=label, info=MEANINGS[key], elem_id=key)
                        for key, label, low, high, step, value in (
                            ("alpha", "alpha", 0, 4, 0.05, start[0]),
                            ("beta", "beta", 0.01, 1, 0.01, start[1]),
                            ("top-k", "top-k", 1, patches, 1, start[2]),
                            ("length", "longest answer, in tokens", 1, 256, 1, start[3]),
                        )
                    ]
            with gradio.Column(elem_classes="side"):
                with gradio.Column(elem_id="answers"):
                    with gradio.Row(elem_id="pair"):
                        greedy = gradio.HTML(write_answer(plain, ""), elem_id="greedy")
                        damro = gradio.HTML(write_answer(_WITH, ""), elem_id="damro")
                    note = gradio.HTML(elem_id="note")
                with gradio.Column(elem_id="evidence"):
                    picture = gradio.Image(
                        label=f"{SOURCE_NAMES[source]} and outlier patches", show_label=False, interactive=False,
                        format="png", buttons=["download", "fullscreen"], elem_id="map",
                    )  # fmt: skip
                    taken = gradio.HTML(elem_id="taken")
                    code = gradio.Code(language="python", label="The same in Python", interactive=False, elem_id="code")

        def answer(*values: Any) -> Iterator[tuple[Any, ...]]:
            unknown = advice(processor, values[1] or "")
            hint = f"<p>{escape(unknown)}.</p>" if unknown else ""
            try:
                for now in answer_request(model, processor, name, *values, max_pixels=max_pixels, sampling=sampling):
                    others = (now.damro, now.greedy) if now.complete else (None, None)
                    told = tell_difference(plain, now.greedy, now.damro) if now.complete else BUSY
                    yield (
                        write_answer(plain, now.greedy, others[0]),
                        write_answer(_WITH, now.damro, others[1]),
                        f"<p>{escape(told)}</p>" + hint,
                        now.picture,
                        write_taken(now.taken),
                        now.code,
                    )
            except ImageSizeError as error:
                raise _refusal(_NO_SIZE.format(max_pixels)) from error
            except ImageError as error:
                raise _refusal(_NO_IMAGE) from error
            except DecodingError as error:
                raise _refusal(str(error)) from error

        def choose(event: gradio.SelectData) -> tuple[Any, ...]:
            chosen = examples[event.index]
            return chosen.image, escape(chosen.about), PROMPT, *start

        asking: dict[str, Any] = {
            "inputs": [image, prompt, *fields],
            "outputs": [greedy, damro, note, picture, taken, code],
            # An error is told by its own box; a progress sign would tell it once more in every part of the page.
            "show_progress": "hidden",
            "trigger_mode": "always_last",
            "api_visibility": "private",
        }
        chosen = gallery.select(choose, None, [image, about, prompt, *fields], api_visibility="private")
        chosen.then(answer, **asking)
        image.input(str, None, about, api_visibility="private")  # nobody knows what an upload shows
        gradio.on([ask.click, prompt.submit, *(field.release for field in fields[:3])], answer, **asking)
    page.queue(default_concurrency_limit=1, max_size=_QUEUE, api_open=False)
    return page


def _refusal(message: str) -> Exception:
    """What a visitor did wrong: told to the visitor, who reads it as text, and not on the terminal."""
    error: Exception = gradio.Error(escape(message), print_exception=False)
    return error


def _telling(preprocess: Callable[[Any], Any], max_pixels: int) -> Callable[[Any], Any]:
    """Gradio opens an upload before anybody else, and has no word for one that does not open."""

    def tell(payload: Any) -> Any:
        try:
            return preprocess(payload)
        except Image.DecompressionBombError as error:
            raise _refusal(_NO_SIZE.format(max_pixels)) from error
        except (OSError, ValueError, SyntaxError) as error:
            raise _refusal(_NO_IMAGE) from error

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
    theme.set(body_text_color_subdued="*neutral_600", block_info_text_color="*neutral_600")  # its own grey is too faint
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
        css=(files("damro.pages") / "templates" / "app.css").read_text("utf-8"),
        prevent_thread_lock=True,
    )
    if block:
        page.block_thread()
    return str(address)
