"""Stage 2 of the LLaVA models: projector and language model learn to caption and to answer; the ViT is frozen.

One image prefix serves a caption and six questions: they stand behind it in one row, each sees the prefix and
itself only (block mask), and the positions of each begin anew where the prefix ends.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from damro.tiny.cache import SceneCache
from damro.tiny.dice import Bytes, Dice
from damro.tiny.lessons import Lesson, Lessons
from damro.tiny.loop import Schedule, run_stage
from damro.tiny.parallel import share_of

IGNORED = -100
"""Label of a token that is not predicted."""
BEFORE_IMAGE = 3
"""Columns of a prefix before the image: ``<s>``, ``USER`` and the colon."""

_SALT = 19


class Packed(NamedTuple):
    """Rows of several lessons behind one image prefix.

    Attributes:
        ids: (B, S) token ids of the lessons, padded on the right.
        labels: (B, S) the token to predict at each place, or `IGNORED`.
        short: (B, S) True where the lesson is a question.
        segments: (B, S) number of the lesson, from 1; 0 for padding.
        offsets: (B, S) place within its lesson.
    """

    ids: Tensor
    labels: Tensor
    short: Tensor
    segments: Tensor
    offsets: Tensor


def pack_lessons(tokenizer: PreTrainedTokenizerBase, rows: list[list[Lesson]]) -> Packed:
    """Tokenizes the lessons of each scene and puts them side by side.

    Args:
        tokenizer: the word-level tokenizer.
        rows: lessons of each scene.

    Returns:
        Tensors as long as the longest row.
    """
    prompts = tokenizer([f"{lesson.prompt} ASSISTANT:" for row in rows for lesson in row], add_special_tokens=False)
    answers = tokenizer([f"{lesson.answer}</s>" for row in rows for lesson in row], add_special_tokens=False)
    pairs = iter(zip(prompts.input_ids, answers.input_ids, strict=True))
    packed: list[list[list[int]]] = []
    for row in rows:
        fields: list[list[int]] = [[], [], [], [], []]
        for number, lesson in enumerate(row, start=1):
            prompt, answer = next(pairs)
            size = len(prompt) + len(answer)
            # The last prompt token predicts the first answer token, and </s> predicts nothing.
            labels = [IGNORED] * (len(prompt) - 1) + answer + [IGNORED]
            parts = (prompt + answer, labels, [int(lesson.is_question)] * size, [number] * size, list(range(size)))
            for field, part in zip(fields, parts, strict=True):
                field.extend(part)
        packed.append(fields)
    width = max(len(fields[0]) for fields in packed)
    fills = (tokenizer.pad_token_id, IGNORED, 0, 0, 0)
    stacked = [
        torch.tensor([fields[k] + [fill] * (width - len(fields[k])) for fields in packed])
        for k, fill in enumerate(fills)
    ]
    return Packed(stacked[0], stacked[1], stacked[2].bool(), stacked[3], stacked[4])


def block_mask(segments: Tensor, prefix: int, dtype: torch.dtype) -> Tensor:
    """What may look at what: causal, within the prefix and within each lesson, and from lessons to the prefix.

    Args:
        segments: (B, S) numbers of the lessons; 0 for padding.
        prefix: columns of the image prefix before them.
        dtype: of the result.

    Returns:
        Additive mask (B, 1, prefix + S, prefix + S): 0 where allowed, the lowest number elsewhere.

    Example:
        >>> mask = block_mask(torch.tensor([[1, 2]]), prefix=1, dtype=torch.float32)
        >>> (mask[0, 0] == 0).int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    owner = torch.cat([segments.new_zeros(len(segments), prefix), segments], dim=1)  # (B, L)
    length = owner.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    in_prefix = torch.arange(length) < prefix
    allowed = causal & (in_prefix[None, None, :] | (owner[:, :, None] == owner[:, None, :]))
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def hide_columns(mask: Tensor, seen: Tensor) -> Tensor:
    """Takes columns of the prefix away from everything but themselves.

    Args:
        mask: (B, 1, L, L), additive, as `block_mask` makes it.
        seen: (B, P) bool, P <= L; False is hidden.

    Returns:
        The mask (B, 1, L, L). A hidden column still sees itself, as a row without anything would give NaN.
    """
    length = mask.shape[-1]
    hidden = functional.pad(~seen, (0, length - seen.shape[1]))[:, None, None, :]  # (B, 1, 1, L)
    return mask.masked_fill(hidden & ~torch.eye(length, dtype=torch.bool), torch.finfo(mask.dtype).min)


class ImagePrefix(nn.Module):
    """Everything before the first lesson: ``<s> USER: <image>`` with the projected patches in place.

    Args:
        model: a LLaVA or LLaVA-NeXT model; its ViT is left without gradients.
        processor: the model's processor.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        """Keeps both."""
        super().__init__()
        self.model = model
        self.processor = processor

    def forward(self, images: Bytes) -> Tensor:
        """Embeds the prefixes of uint8 images (B, 96, 96, 3): float (B, prefix, D)."""
        pictures = [Image.fromarray(image) for image in images]
        inputs = self.processor(images=pictures, text=["USER: <image>"] * len(pictures), return_tensors="pt")
        ids = inputs.pop("input_ids")
        inputs.pop("attention_mask")
        features = torch.cat(list(self.model.model.get_image_features(**inputs).pooler_output))
        embeds = self.model.get_input_embeddings()(ids)
        spots = (ids == self.model.config.image_token_id).unsqueeze(-1).expand_as(embeds)
        filled: Tensor = embeds.masked_scatter(spots, features.to(embeds.dtype))
        return filled


def language_loss(
    model: PreTrainedModel, prefix: Tensor, packed: Packed, seen: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers: mean over caption tokens plus mean over the answers to questions.

    Args:
        model: the LLaVA model.
        prefix: (B, P, D) embedded image prefix.
        packed: the lessons.
        seen: (B, P) bool, the columns of the prefix that are shown; all of them if not given. Positions count what is
            shown alone, as those of a second prompt do.

    Returns:
        The loss, and the figures "caption" (its cross-entropy) and "yes/no" (accuracy of the first word).
    """
    width = prefix.shape[1]
    embeds = torch.cat([prefix, model.get_input_embeddings()(packed.ids)], dim=1)  # (B, L, D)
    seen = torch.ones(prefix.shape[:2], dtype=torch.bool) if seen is None else seen
    places = (seen.long().cumsum(dim=1) - 1).clamp(min=0)
    positions = torch.cat([places, packed.offsets + seen.sum(dim=1, keepdim=True)], dim=1)
    output = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=hide_columns(block_mask(packed.segments, width, embeds.dtype), seen),
        position_ids=positions,
        use_cache=False,
    )
    chosen = packed.labels != IGNORED
    scores = model.lm_head(output.last_hidden_state[:, width:][chosen]).float()
    labels, short = packed.labels[chosen], packed.short[chosen]
    losses = functional.cross_entropy(scores, labels, reduction="none")
    words = short & (labels != model.generation_config.eos_token_id)
    loss = losses[~short].mean() + losses[words].mean() + 0.1 * losses[short & ~words].mean()
    right = (scores[words].argmax(-1) == labels[words]).float().mean()
    return loss, {"caption": float(losses[~short].detach().mean()), "yes/no": float(right)}


def draw_columns(batch: int, first: int, count: int, dice: Dice) -> Tensor:
    """Which columns of an image prefix are shown: in half of the rows all, else a few at random, or none.

    A model that was trained so is not at a loss when a second prompt shows it ten patches, or no image at all.

    Args:
        batch: rows.
        first: columns before the image, always shown.
        count: columns of the image.
        dice: it is advanced.

    Returns:
        (B, first + count) bool.

    Example:
        >>> draw_columns(4, 1, 3, Dice(0)).shape
        torch.Size([4, 4])
    """
    seen = torch.ones(batch, first + count, dtype=torch.bool)
    for row in range(batch):
        if dice.chance(50):
            few = 0 if dice.chance(15) else dice.between(4, count * 3 // 4)
            hidden = sorted(range(count), key=lambda _: dice.below(1 << 32))[few:]
            seen[row, [first + column for column in hidden]] = False
    return seen


def train_language(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    cache: SceneCache,
    rows: range,
    schedule: Schedule,
    state_file: Path,
    varied: bool = False,
) -> None:
    """Runs stage 2 in place.

    Args:
        model: a LLaVA or LLaVA-NeXT model whose ViT is trained.
        processor: its processor.
        cache: training scenes.
        rows: which of them; best some that the ViT was not trained on.
        schedule: how.
        state_file: where the state is saved.
        varied: in half of the rows some patches alone are shown, and half of the prompts are said in other words.
    """
    model.train()
    model.set_attn_implementation("eager")
    model.model.vision_tower.requires_grad_(False)
    lessons = Lessons(cache, varied)
    embed_prefix = ImagePrefix(model, processor)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        numbers = [rows[(step * schedule.batch + k) % len(rows)] for k in share_of(schedule.batch)]
        packed = pack_lessons(processor.tokenizer, [lessons.draw(number, step) for number in numbers])
        prefix = embed_prefix(cache.images[numbers])
        count = prefix.shape[1] - BEFORE_IMAGE
        seen = draw_columns(len(numbers), BEFORE_IMAGE, count, Dice(_SALT, step, numbers[0])) if varied else None
        return language_loss(model, prefix, packed, seen)

    run_stage("stage 2: language", model, loss_of, schedule, state_file)
