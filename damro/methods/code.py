"""CODE: the prompt against itself with the model's own description in the place of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from damro.decoding.errors import InputsError, ParameterError
from damro.methods.base import SECOND, Cost, Method, Scene
from damro.parameters import Range, check_fields

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.families import Encoding
    from damro.decoding.rules import Contrast

INSTRUCTION = (
    "Provide a detailed description of the image, covering all visible elements and their interactions, so as to "
    "thoroughly answer any potential questions about the image."
)
"""What CODE's authors ask for (github.com/IVY-LVLM/CODE, models/llava-model-hf.py)."""

Exponent = Annotated[float, Range(0, above=True, hint="0.7 is what CODE's evaluation has")]
Tokens = Annotated[int, Range(1, hint="512 is what CODE was released with")]


@dataclass(frozen=True)
class CODE(Method):
    """The prompt against the model's own description in the place of the image (CODE, NeurIPS 2024).

    First the model describes the image, in a greedy search; the description's tokens, with those that the tokenizer
    puts around a text, then stand where the image stood. How strong the contrast is and where the plausibility cutoff
    lies depend on how far the two predictions are apart, see :class:`CODERule`. Defaults are those of the released
    evaluation; the function that contrasts has 0.2 for the exponent where nothing is said. Needs the model's processor.

    Differences from the released code: the description is asked for in the words of the model's own chat template, and
    questions about one image that are asked together share it.

    Attributes:
        exponent: of the difference of two probabilities in the divergence.
        description_tokens: longest description in tokens.
        instruction: what the description is asked for by.
    """

    name: ClassVar = "code"
    source: ClassVar = "CODE, NeurIPS 2024, arXiv 2406.01920; github.com/IVY-LVLM/CODE, cd_utils.py"
    cost: ClassVar = Cost(passes=1, memory=f"{SECOND}; a description of every image is written first")
    limits: ClassVar = ("a call without the model's processor", "several images in a prompt")
    code: ClassVar = "github.com/IVY-LVLM/CODE"

    exponent: Exponent = 0.7
    description_tokens: Tokens = 512
    instruction: str = INSTRUCTION

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast:
        """The full prompt, and the text alone with the description in it."""
        from damro.decoding.families import family_of
        from damro.decoding.rules import Contrast

        run = scene.look(model, inputs)
        _check_single_images(run.encoding.rows)
        asked = ask_for_description(model, inputs, scene.processor, self.instruction)
        descriptions = self._describe(model, asked, scene, run.encoding)
        told = insert_behind_image(model, inputs, descriptions * (len(inputs["input_ids"]) // len(descriptions)))
        negative = family_of(model).full_prompt(model, told, run.encoding).drop_image()
        return Contrast(scene.full_prompt(model, inputs, run), negative, CODERule(self.exponent))

    def _describe(
        self, model: PreTrainedModel, asked: dict[str, Any], scene: Scene, encoding: Encoding
    ) -> list[Tensor]:
        """The tokens of the description of each prompt's image, or of the one that all share."""
        from torch import Tensor, tensor

        from damro.decoding.branches.encoder_decoder import returned_prompt
        from damro.decoding.branches.prefix import encode_images
        from damro.decoding.families import family_of
        from damro.decoding.generate import decode
        from damro.decoding.prompts import VisualPrompt

        if "qformer_input_ids" in asked:  # which are read beside the image
            encoding = encode_images(model, asked, shared=scene.shared_image)
        prompt = family_of(model).full_prompt(model, asked, encoding)
        if scene.shared_image and isinstance(prompt, VisualPrompt):
            prompt = VisualPrompt(
                prompt.inputs_embeds[:1], prompt.attention_mask[:1], prompt.image_mask[:1], prompt.bidirectional
            )
            asked = {key: value[:1] if isinstance(value, Tensor) else value for key, value in asked.items()}
        length = self.description_tokens
        ids = decode(model, asked, prompt, do_sample=False, num_beams=1, max_new_tokens=length)
        new = ids[:, returned_prompt(model, asked).shape[1] :]
        texts = scene.processor.batch_decode(new, skip_special_tokens=True)
        return [tensor(scene.processor.tokenizer(text.strip())["input_ids"], dtype=ids.dtype) for text in texts]


@dataclass(frozen=True)
class CODERule:
    """`log_softmax((1 + a_t) f - a_t n)` where `p_f >= D max p_f`, with `a_t = 1 - D`.

    `D = sum(log2(|p_f - p_n| ** exponent + 1) (p_f + p_n)) / 2` is how far apart the probabilities with the image and
    with the description are, from 0 to 1 (the authors' `cd_utils.py`). Where both say the same, the contrast is
    strongest and every token is plausible; so the other logits are always needed.

    Attributes:
        exponent: of the difference, > 0.

    Raises:
        ParameterError: if it is out of range.

    Example:
        >>> import torch
        >>> full, other = torch.tensor([[2.0, 1.0, -3.0]]), torch.tensor([[1.0, 2.0, -3.0]])
        >>> CODERule()(full, other, step=0).exp().round(decimals=3).tolist()
        [[1.0, 0.0, 0.0]]
    """

    exponent: Exponent = 0.7

    def __post_init__(self) -> None:
        """Checks the parameter."""
        check_fields(self, ParameterError)

    def needed(self, full: Tensor, step: int | Tensor) -> Tensor:
        """All tokens."""
        import torch

        return torch.ones_like(full, dtype=torch.bool)

    def __call__(self, full: Tensor, negative: Tensor | None, step: int | Tensor) -> Tensor:
        """See the equation above."""
        assert negative is not None
        full, negative = full.float(), negative.float()
        seen, told = full.softmax(dim=-1), negative.softmax(dim=-1)
        apart = ((seen - told).abs().pow(self.exponent) + 1).log2() * (seen + told)
        divergence = apart.sum(dim=-1, keepdim=True) / 2
        mixed = (2 - divergence) * full - (1 - divergence) * negative
        cut = seen < divergence * seen.amax(dim=-1, keepdim=True)
        return mixed.masked_fill(cut, float("-inf")).log_softmax(dim=-1)


def ask_for_description(
    model: PreTrainedModel, inputs: Mapping[str, Any], processor: Any, instruction: str = INSTRUCTION
) -> dict[str, Any]:
    """The same images under another instruction, in the model's own format.

    Args:
        model: the LVLM.
        inputs: what its processor returned, one image a prompt.
        processor: the model's own.
        instruction: what to ask.

    Returns:
        A copy of `inputs` with other `input_ids (B, L)` and `attention_mask`, what says of every token what it is,
        and what a Q-Former reads of the instruction.

    Raises:
        ParameterError: if there is no processor.
        InputsError: if the format has no single place for an image.
    """
    import torch

    from damro.chat import format_prompt
    from damro.decoding.families.base import image_columns

    tokenizer: Any = getattr(processor, "tokenizer", None)
    if not callable(tokenizer):
        raise ParameterError(
            f"processor must be given to ask for a description, got {processor!r}; pass processor=, the one that made "
            "the inputs"
        )
    text = format_prompt(processor, instruction)
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids: Tensor = inputs["input_ids"]
    words = torch.tensor(tokenizer(text, add_special_tokens=not begins)["input_ids"], dtype=ids.dtype).to(ids.device)
    places = image_columns(model, words[None])[0].nonzero().flatten().tolist()
    if len(places) > 1:
        raise InputsError(
            f"format of the prompt must hold one image token, to which the processor gives its columns, got "
            f"{len(places)} in {text!r}; use a method that writes no description"
        )
    # Where the text has none, the processor puts the columns in front of it (InstructBLIP, BLIP-2).
    before, behind = (words[: places[0]], words[places[0] + 1 :]) if places else (words[:0], words)
    spans = [row.nonzero().flatten()[[0, -1]].tolist() for row in image_columns(model, ids)]

    def around(table: Tensor, before: Tensor, behind: Tensor) -> list[Tensor]:
        rows = zip(table, spans, strict=True)
        parts = ((before.to(row.dtype), row[first : last + 1], behind.to(row.dtype)) for row, (first, last) in rows)
        return [torch.cat(part) for part in parts]

    tables = {name: around(table, before * 0, behind * 0) for name, table in _types(inputs).items()}
    asked = {**inputs, **_stacked(around(ids, before, behind), tables)}
    if "qformer_input_ids" in inputs:
        read = processor.qformer_tokenizer([instruction] * len(ids), return_tensors="pt").to(ids.device)
        asked |= {"qformer_input_ids": read["input_ids"], "qformer_attention_mask": read["attention_mask"]}
    return asked


def insert_behind_image(model: PreTrainedModel, inputs: Mapping[str, Any], tokens: Sequence[Tensor]) -> dict[str, Any]:
    """Puts tokens behind the last image column of each prompt.

    Args:
        model: the LVLM.
        inputs: what its processor returned.
        tokens: for each prompt, `(n,)`.

    Returns:
        A copy of `inputs` with longer `input_ids (B, L + n)` and `attention_mask`, and whatever else says of every
        token what it is; rows are padded on the left, and none of their own padding is left.
    """
    import torch

    from damro.decoding.families.base import attention_mask_of, image_columns

    ids: Tensor = inputs["input_ids"]
    mask = attention_mask_of(model, inputs).to(ids.device).bool()
    ends = [int(row.nonzero().flatten()[-1]) + 1 for row in image_columns(model, ids)]

    def insert(table: Tensor, new: Sequence[Tensor]) -> list[Tensor]:
        parts = zip(table, mask, ends, new, strict=True)
        return [
            torch.cat([row[:end][read[:end]], more.to(row.device, row.dtype), row[end:][read[end:]]])
            for row, read, end, more in parts
        ]

    of_text = [torch.zeros_like(one) for one in tokens]
    tables = {name: insert(table, of_text) for name, table in _types(inputs).items()}
    return {**inputs, **_stacked(insert(ids, tokens), tables)}


def _types(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What says of every token what it is."""
    from damro.decoding.families.generic.prompt import TYPES

    return {name: inputs[name] for name in TYPES if inputs.get(name) is not None}


def _stacked(rows: Sequence[Tensor], tables: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Rows of different length as `input_ids`, and tables beside them, padded on the left with zeros; their mask."""
    from torch import ones_like
    from torch.nn.utils.rnn import pad_sequence

    def stack(one: Sequence[Tensor]) -> Tensor:
        return pad_sequence(list(one), batch_first=True, padding_side="left")

    mask = stack([ones_like(row) for row in rows])
    return {"input_ids": stack(rows), "attention_mask": mask, **{name: stack(one) for name, one in tables.items()}}


def _check_single_images(rows: Sequence[int]) -> None:
    """Raises InputsError if a row holds more than one image."""
    if len(set(rows)) < len(rows):
        raise InputsError(
            f"every prompt must hold one image to be described in its place, got {len(rows)} images in "
            f"{len(set(rows))} prompts; use a method that writes no description"
        )
