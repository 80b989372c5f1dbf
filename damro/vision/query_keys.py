"""Queries and keys of a ViT layer, kept by hooks, and the attention weights that they give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from damro.decoding.hooks import Look, hooked
from damro.errors import ParameterError, UnsupportedModelError
from damro.vision.sources import has_cls

Heads = Literal["merged", "mean", "max"]
"""How the heads of a layer are joined."""


@dataclass(frozen=True)
class ClsQueryKeys:
    """What a hook keeps of one layer.

    Attributes:
        query: `(tiles, heads, d)` of [CLS], or `(tiles, heads, P, d)` of all patches where there is no [CLS].
        keys: `(tiles, heads, 1 + P, d)`.
    """

    query: Tensor
    keys: Tensor


@contextmanager
def record_cls(tower: Any, layers: Sequence[int], every: bool = False) -> Iterator[dict[int, ClsQueryKeys]]:
    """While open, keeps the [CLS] query and the keys of some layers whenever the tower runs in this thread.

    Without [CLS] it keeps all queries.

    Args:
        tower: a ViT of transformers, with `q_proj` and `k_proj` or a fused `qkv` in each layer.
        layers: layer numbers from 0.
        every: keep the queries of all tokens in any case.

    Yields:
        A dict that is filled, by layer, while the tower runs. The hooks are removed on exit, also when the body
        raises.
    """
    recorded: dict[int, ClsQueryKeys] = {}
    parts: dict[int, dict[str, Tensor]] = {number: {} for number in layers}
    first_only = has_cls(tower) and not every
    looks = [
        (module, _keep(parts[number], name, first_only))
        for number in layers
        for name, module in _projections(encoder_layers(tower)[number]).items()
    ]
    with hooked(after=looks):
        yield recorded
    for number, kept in parts.items():
        if kept:
            recorded[number] = _split(kept, tower.config.num_attention_heads, every)


def encoder_layers(tower: nn.Module) -> nn.ModuleList:
    """The transformer layers of a ViT.

    Raises:
        UnsupportedModelError: if they are not where transformers puts them.
    """
    encoder = getattr(tower, "encoder", tower)  # ViT and DeiT hold their layers themselves
    layers = getattr(encoder, "layers", getattr(encoder, "layer", None))
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(
            f"vision tower must have a list of layers named layers, encoder.layers or encoder.layer, got "
            f"{type(tower).__name__}; CLIP, ViT, DeiT, DINOv2 and InstructBLIP's ViT do"
        )
    return layers


def cls_weights(recorded: ClsQueryKeys, heads: Heads) -> Tensor:
    """Softmax of [CLS] over all tokens, heads joined: `(tiles, 1 + P)`, float32.

    Example:
        >>> import torch
        >>> one_head = ClsQueryKeys(torch.zeros(1, 1, 2), torch.zeros(1, 1, 4, 2))
        >>> cls_weights(one_head, "merged").tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    if heads != "merged":
        return _join(head_weights(recorded), heads)
    query, keys = recorded.query.float(), recorded.keys.float()
    logits = torch.einsum("thd,thnd->thn", query, keys)  # (tiles, heads, 1 + P)
    return torch.softmax(logits.sum(dim=1) * (query.shape[1] * query.shape[2]) ** -0.5, dim=-1)


def received_weights(recorded: ClsQueryKeys, heads: Heads) -> Tensor:
    """Attention that each patch receives, the mean over all queries, heads joined: `(tiles, P)`, float32.

    Example:
        >>> import torch
        >>> one_head = ClsQueryKeys(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2))
        >>> received_weights(one_head, "mean").tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    if heads != "merged":
        return _join(head_weights(recorded), heads)
    scale = (recorded.query.shape[1] * recorded.query.shape[-1]) ** -0.5
    weights = []
    for query, keys in zip(recorded.query.float(), recorded.keys.float(), strict=True):
        logits = torch.einsum("hqd,hnd->qn", query, keys) * scale
        weights.append(torch.softmax(logits, dim=-1).mean(dim=0))
    return torch.stack(weights)


def head_weights(recorded: ClsQueryKeys) -> Tensor:
    """Each head's own softmax over all tokens, `(tiles, heads, 1 + P)`, float32: of [CLS].

    Without [CLS] it is the mean over the queries of all patches, `(tiles, heads, P)`.

    Example:
        >>> import torch
        >>> two_heads = ClsQueryKeys(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4, 3))
        >>> head_weights(two_heads).tolist()
        [[[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]]]
    """
    queries, scale = recorded.query.float(), recorded.query.shape[-1] ** -0.5
    if queries.ndim == 3:
        logits = torch.einsum("thd,thnd->thn", queries, recorded.keys.float())
        return torch.softmax(logits * scale, dim=-1)
    weights = []
    # A tile at a time: all at once would be tiles x heads x patches x patches.
    for query, keys in zip(queries, recorded.keys.float(), strict=True):
        logits = torch.einsum("hqd,hnd->hqn", query, keys)
        weights.append(torch.softmax(logits * scale, dim=-1).mean(dim=1))
    return torch.stack(weights)


def full_weights(recorded: ClsQueryKeys) -> Tensor:
    """What every token pays to every token, the mean over heads: `(tiles, tokens, tokens)`, float32.

    Args:
        recorded: with the queries of all tokens, `(tiles, heads, tokens, d)`.

    Example:
        >>> import torch
        >>> full_weights(ClsQueryKeys(torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 3))).tolist()
        [[[0.5, 0.5], [0.5, 0.5]]]
    """
    query, keys = recorded.query.float(), recorded.keys.float()
    return torch.softmax(query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1).mean(dim=1)


def _join(weights: Tensor, heads: Heads) -> Tensor:
    """`(tiles, heads, n)` to `(tiles, n)`."""
    if heads == "mean":
        return weights.mean(dim=1)
    if heads == "max":
        return weights.amax(dim=1)
    raise ParameterError(f"heads must be one of {', '.join(get_args(Heads))}, got {heads!r}")


def _projections(layer: nn.Module) -> dict[str, nn.Module]:
    """The modules of a layer whose outputs hold queries and keys."""
    modules = {name.rpartition(".")[2]: module for name, module in layer.named_modules()}
    if "qkv" in modules:
        return {"qkv": modules["qkv"]}
    # transformers 5.10 names the projections of DINOv2 query and key.
    names = ("q_proj", "k_proj") if "q_proj" in modules else ("query", "key")
    return {"query": modules[names[0]], "keys": modules[names[1]]}


def _keep(kept: dict[str, Tensor], name: str, first_only: bool) -> Look:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        kept[name] = output[:, :1] if name == "query" and first_only else output

    return hook


def _split(kept: dict[str, Tensor], heads: int, every: bool) -> ClsQueryKeys:
    """Cuts recorded projections into heads."""
    if "qkv" in kept:
        tiles, tokens, _ = kept["qkv"].shape
        fused = kept["qkv"].view(tiles, tokens, 3, heads, -1)  # query, key, value
        query = fused[:, :, 0].transpose(1, 2) if every else fused[:, 0, 0]
        return ClsQueryKeys(query, fused[:, :, 1].transpose(1, 2))
    tiles, tokens, _ = kept["keys"].shape
    query = kept["query"].view(tiles, kept["query"].shape[1], heads, -1).transpose(1, 2)
    query = query[:, :, 0] if query.shape[2] == 1 else query
    return ClsQueryKeys(query, kept["keys"].view(tiles, tokens, heads, -1).transpose(1, 2))
