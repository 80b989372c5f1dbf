"""DAMRO once more, written out by hand: no cache, no batch, no laziness. What the package must agree with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tests.golden_cases import IMAGE_TOKEN, Inputs


class StatelessDAMRO(LogitsProcessor):
    """Runs the whole negative prompt and the whole history anew at every step, each prompt by itself.

    Patches are ranked here too, with weights computed from a plain forward pass of the vision tower.
    """

    def __init__(self, model: Any, inputs: Inputs, alpha: float, beta: float, top_k: int) -> None:
        self.model, self.alpha, self.beta = model, alpha, beta
        self.length = inputs["input_ids"].shape[1]
        self.calls = 0
        with torch.no_grad():
            self.prompts = negative_prompts(model, inputs, top_k)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        negative = self.negative_logits(input_ids[:, self.length :])
        cutoff = math.log(self.beta) + scores.max(dim=-1, keepdim=True).values
        mixed = (1 + self.alpha) * scores - self.alpha * negative
        mixed[scores < cutoff] = -math.inf
        return mixed - mixed.logsumexp(dim=-1, keepdim=True)

    def negative_logits(self, history: Tensor) -> Tensor:
        """`(R, V)`; the rows of one prompt are of one length, so they may go together."""
        decoder, embed = getattr(self.model, "language_model", self.model), self.model.get_input_embeddings()
        groups = history.chunk(len(self.prompts))
        logits = []
        with torch.no_grad():
            for prompt, rows in zip(self.prompts, groups, strict=True):
                embeds = torch.cat([prompt.expand(len(rows), -1, -1), embed(rows)], dim=1)
                logits.append(decoder(inputs_embeds=embeds, use_cache=False).logits[:, -1].float())
        return torch.cat(logits)


def negative_prompts(model: Any, inputs: Inputs, top_k: int) -> list[Tensor]:
    """`(L, D)` for each row: its text, and what the released code keeps of its images where they stood."""
    chosen, widths = chosen_features(model, inputs, top_k)
    embed, prompts, image = model.get_input_embeddings(), [], 0
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
        read, pieces, column = ids[mask], [], 0
        while column < len(read):
            if read[column] == IMAGE_TOKEN:
                pieces.append(chosen[image])
                column += widths[image]
                image += 1
            else:
                pieces.append(embed(read[column : column + 1]))
                column += 1
        prompts.append(torch.cat(pieces))
    return prompts


def chosen_features(model: Any, inputs: Inputs, top_k: int) -> tuple[list[Tensor], list[int]]:
    """What stands for each image in the negative prompt, and the columns it has in the full one."""
    ranked = merged_or_mean_weights(model, inputs).argsort(dim=-1, descending=True)[:, :top_k]
    family = model.config.model_type
    if family == "llava":
        features = model.get_image_features(inputs["pixel_values"], return_dict=True).pooler_output
        return [feature[order] for feature, order in zip(features, ranked, strict=True)], [len(f) for f in features]
    if family in ("llava_next", "llava_next_video"):
        features = model.get_image_features(
            inputs["pixel_values"], inputs["image_sizes"], return_dict=True
        ).pooler_output
        tiles = tiles_of_images(model, inputs)
        bases = [sum(tiles[:image]) for image in range(len(tiles))]
        newline = model.model.image_newline[None]
        kept = [torch.cat([f[ranked[base]], newline]) for f, base in zip(features, bases, strict=True)]
        return kept, [len(f) for f in features]
    tokens = model.vision_model(inputs["pixel_values"]).last_hidden_state
    # The released code's slip: indices that do not count [CLS], into a tensor that has it.
    picked = torch.stack([token[order] for token, order in zip(tokens, ranked, strict=True)])
    return list(queries_reading(model, inputs, picked)), [model.config.num_query_tokens] * len(tokens)


def queries_reading(model: Any, inputs: Inputs, image_embeds: Tensor) -> Tensor:
    """InstructBLIP's Q-Former and projection over some vectors."""
    queries = model.query_tokens.expand(len(image_embeds), -1, -1)
    mask = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), inputs["qformer_attention_mask"]], dim=1)
    hidden = model.qformer(
        input_ids=inputs["qformer_input_ids"],
        attention_mask=mask,
        query_embeds=queries,
        encoder_hidden_states=image_embeds,
    )[0]
    return model.language_projection(hidden[:, : queries.shape[1]])


def tiles_of_images(model: Any, inputs: Inputs) -> list[int]:
    """LLaVA-NeXT: the base tile and the tiles of the grid that wastes the least, by hand for the 56-pixel ViT.

    Of the grids in the configuration the processor's rule takes the one that keeps most of the image's pixels
    and, of equals, leaves least empty.
    """
    counts = []
    for height, width in inputs["image_sizes"].tolist():
        fits = []
        for rows, columns in model.config.image_grid_pinpoints:
            scale = min(columns / width, rows / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            fits.append((kept, kept - rows * columns, (rows // 56) * (columns // 56)))
        counts.append(1 + max(fits)[2])
    return counts


def merged_or_mean_weights(model: Any, inputs: Inputs) -> Tensor:
    """`(tiles, 16)`: [CLS] attention of layer 2 of 4, from the hidden states that enter it."""
    instructblip = model.config.model_type == "instructblip"
    tower = model.vision_model if instructblip else model.model.vision_tower
    pixels = inputs["pixel_values"]
    if pixels.ndim == 5:
        pixels = torch.cat([p[:tiles] for p, tiles in zip(pixels, tiles_of_images(model, inputs), strict=True)])
    entering = tower(pixels, output_hidden_states=True).hidden_states[2]
    layer = tower.encoder.layers[2]
    attention, normed = layer.self_attn, layer.layer_norm1(entering)
    if instructblip:
        query, key, _ = attention.qkv(normed).chunk(3, dim=-1)
        heads = [
            torch.softmax(q[:, :1] @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1)[:, 0]
            for q, k in zip(query.split(16, dim=-1), key.split(16, dim=-1), strict=True)
        ]
        return torch.stack(heads).mean(dim=0)[:, 1:]
    query, key = attention.q_proj(normed), attention.k_proj(normed)
    return torch.softmax(query[:, :1] @ key.transpose(1, 2) * query.shape[-1] ** -0.5, dim=-1)[:, 0, 1:]
