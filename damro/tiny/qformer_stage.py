"""Stage 2 of InstructBLIP: the Q-Former, its projection and the language model; the ViT is frozen.

The Q-Former reads the instruction, so each lesson has image queries of its own and no prefix can be shared.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import InstructBlipForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from damro.tiny.cache import SceneCache
from damro.tiny.language_stage import IGNORED
from damro.tiny.lessons import Lesson, Lessons
from damro.tiny.loop import Schedule, run_stage
from damro.tiny.parallel import share_of
from damro.tiny.vision_stage import to_pixels


def convert_tower(clip: PreTrainedModel, target: PreTrainedModel, pixels: Tensor) -> None:
    """Copies a CLIP ViT into InstructBLIP's form.

    The two differ: InstructBLIP has no layer norm before the first layer. That norm is folded into the embeddings.
    For [CLS], which is the same in every image, this is exact. For patches the mean standard deviation stands for
    each patch's own, so the result is a start for training, not an equal.

    Args:
        clip: the trained vision tower of a LLaVA.
        target: an InstructBLIP vision model of the same sizes; changed in place.
        pixels: (B, 3, H, W), images to take the mean standard deviation over.
    """
    source = {name.removeprefix("vision_model."): value for name, value in clip.state_dict().items()}
    scale, shift = source["pre_layrnorm.weight"], source["pre_layrnorm.bias"]
    filters, places = source["embeddings.patch_embedding.weight"], source["embeddings.position_embedding.weight"]
    width, size = filters.shape[0], filters.shape[-1]
    start = functional.layer_norm(
        source["embeddings.class_embedding"] + places[0], (width,), scale, shift, clip.config.layer_norm_eps
    )
    patches = functional.conv2d(pixels, filters, stride=size).flatten(2).transpose(1, 2) + places[1:]  # (B, P, D)
    scale = scale / patches.std(dim=-1, unbiased=False).mean()
    own = target.state_dict()
    own["embeddings.class_embedding"] = start.view(1, 1, -1)
    own["embeddings.patch_embedding.weight"] = (filters - filters.mean(dim=0)) * scale[:, None, None, None]
    own["embeddings.patch_embedding.bias"] = shift
    rest = (places[1:] - places[1:].mean(dim=1, keepdim=True)) * scale
    own["embeddings.position_embedding"] = torch.cat([torch.zeros_like(start)[None], rest])[None]
    for name in own:
        if ".self_attn.qkv." in name:
            stem, kind = name.split("qkv.")
            own[name] = torch.cat([source[f"{stem}{part}_proj.{kind}"] for part in "qkv"])
        elif not name.startswith("embeddings."):
            own[name] = source[name.replace("self_attn.projection", "self_attn.out_proj")]
    target.load_state_dict(own)


def batch_lessons(tokenizer: PreTrainedTokenizerBase, lessons: list[Lesson]) -> tuple[Tensor, Tensor, Tensor]:
    """Token rows ``<s> prompt answer </s>``, padded on the right.

    Args:
        tokenizer: the word-level tokenizer.
        lessons: one a row.

    Returns:
        Ids (N, S), the token to predict at each place or `IGNORED` (N, S), and the attention mask (N, S).
    """
    prompts = tokenizer([lesson.prompt for lesson in lessons]).input_ids
    answers = tokenizer([f"{lesson.answer}</s>" for lesson in lessons], add_special_tokens=False).input_ids
    width = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = torch.full((len(lessons), width), int(tokenizer.pad_token_id))
    labels = torch.full((len(lessons), width), IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) - 1 : len(prompt) + len(answer) - 1] = torch.tensor(answer)
    return ids, labels, (ids != int(tokenizer.pad_token_id)).long()


def qformer_loss(
    model: InstructBlipForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    patches: Tensor,
    rows: list[list[Lesson]],
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers, weighted as in the LLaVA stage.

    Args:
        model: the InstructBLIP model.
        tokenizer: its tokenizer.
        patches: (B, 65, D) output of the ViT.
        rows: the lessons of each scene.

    Returns:
        The loss, and the figures "caption" and "yes/no".
    """
    lessons = [lesson for row in rows for lesson in row]
    patches = patches.repeat_interleave(len(rows[0]), dim=0)  # (N, 65, D)
    asked = tokenizer([lesson.prompt for lesson in lessons], return_tensors="pt", padding=True)
    queries = model.query_tokens.expand(len(lessons), -1, -1)  # (N, Q, D)
    count = queries.shape[1]
    looked = model.qformer(
        input_ids=asked.input_ids,
        attention_mask=torch.cat([asked.attention_mask.new_ones(len(lessons), count), asked.attention_mask], dim=1),
        query_embeds=queries,
        encoder_hidden_states=patches,
    ).last_hidden_state[:, :count]
    prefix = model.language_projection(looked)
    ids, labels, mask = batch_lessons(tokenizer, lessons)
    output = model.language_model.model(
        inputs_embeds=torch.cat([prefix, model.get_input_embeddings()(ids)], dim=1),
        attention_mask=torch.cat([mask.new_ones(len(lessons), count), mask], dim=1),
        use_cache=False,
    )
    chosen = labels != IGNORED
    scores = model.language_model.lm_head(output.last_hidden_state[:, count:][chosen]).float()
    losses = functional.cross_entropy(scores, labels[chosen], reduction="none")
    asks = torch.tensor([lesson.is_question for lesson in lessons])
    short = asks[:, None].expand_as(labels)[chosen]
    words = short & (labels[chosen] != tokenizer.eos_token_id)
    loss = losses[~short].mean() + losses[words].mean() + 0.1 * losses[short & ~words].mean()
    right = (scores[words].argmax(-1) == labels[chosen][words]).float().mean()
    return loss, {"caption": float(losses[~short].detach().mean()), "yes/no": float(right)}


def train_qformer(
    model: InstructBlipForConditionalGeneration,
    processor: ProcessorMixin,
    cache: SceneCache,
    rows: range,
    schedule: Schedule,
    state_file: Path,
    varied: bool = False,
) -> None:
    """Runs stage 2 in place.

    Args:
        model: an InstructBLIP model whose ViT is trained.
        processor: its processor.
        cache: training scenes.
        rows: which of them; best some that the ViT was not trained on.
        schedule: how.
        state_file: where the state is saved.
        varied: half of the prompts are said in other words.
    """
    model.train()
    model.set_attn_implementation("eager")
    model.vision_model.requires_grad_(False)
    lessons = Lessons(cache, varied)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        numbers = [rows[(step * schedule.batch + k) % len(rows)] for k in share_of(schedule.batch)]
        drawn = [lessons.draw(number, step) for number in numbers]
        with torch.no_grad():
            patches = model.vision_model(pixel_values=to_pixels(cache.images[numbers])).last_hidden_state
        return qformer_loss(model, processor.tokenizer, patches, drawn)

    run_stage("stage 2: Q-Former and language", model, loss_of, schedule, state_file)
