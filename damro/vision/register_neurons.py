"""Which MLP neurons of a ViT write its outliers: found in images, kept in a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from damro.decoding.hooks import Look, hooked
from damro.errors import InputsError, ParameterError
from damro.vision.attention import family_heads, read_layer, record_layers, tower_family
from damro.vision.outliers import flag_patches
from damro.vision.query_keys import encoder_layers
from damro.vision.register_effect import keep_lengths
from damro.vision.registers import check_tower, down_projection

OutlierRule = Literal["norm", "attention"]
"""What makes a patch an outlier: the length of its vector, or the [CLS] attention that it draws."""

_FORMAT = "damro register neurons 1"
_CUTOFF = 10.0
"""Deviations above the median from which on a vector is long, as of the rule `norm` of damro.find_outliers."""
_QUIET, _QUIET_SHARE = 0.5, 0.5
"""A register neuron is below the first in this share of the tokens, silent but at outliers (the authors' code)."""
_NEAR = 0.02
"""Share by which a neuron's mark may differ: sixteen bits round by less."""


@dataclass(frozen=True)
class RegisterNeurons:
    """MLP neurons of a ViT that write outliers, and how they were found.

    Attributes:
        tower: type of the ViT.
        depth: number of its layers.
        width: neurons of a layer's MLP.
        neurons: pairs of layer and neuron, the highest score first.
        scores: of each, its mean activation at outliers, by magnitude.
        marks: of each, the length of what it writes, by which a file is told from another model's.
        recipe: how they were found.
    """

    tower: str
    depth: int
    width: int
    neurons: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]
    marks: tuple[float, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def masks(self) -> dict[int, Tensor]:
        """By layer, boolean `(neurons,)`, as :func:`damro.vision.registers.added_register` takes them."""
        found: dict[int, Tensor] = {}
        for layer, neuron in self.neurons:
            found.setdefault(layer, torch.zeros(self.width, dtype=torch.bool))[neuron] = True
        return found

    def check(self, tower: nn.Module) -> None:
        """Checks that they are a ViT's own.

        Raises:
            ParameterError: they are another model's.
        """
        kind, depth, width = shape_of(tower)
        told = f"{self.tower} of {self.depth} layers of {self.width} neurons"
        if (kind, depth, width) != (self.tower, self.depth, self.width):
            raise ParameterError(
                f"neurons must be of the vision tower's own kind, {kind} of {depth} layers of {width} neurons, "
                f"got those of {told}; find its own with damro registers"
            )
        own = marks_of(tower, self.neurons)
        if own is not None and any(abs(a - b) > _NEAR * abs(b) for a, b in zip(own, self.marks, strict=True)):
            raise ParameterError(
                f"neurons must be of the vision tower's own weights, got those of another {told}; find its own with "
                "damro registers"
            )

    def save(self, path: str | Path) -> None:
        """Writes them as JSON."""
        Path(path).write_text(json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> RegisterNeurons:
        """Reads what :meth:`save` wrote.

        Raises:
            ParameterError: there is no such file, or it is no such file.
        """
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8"))
            if told.pop("format") != _FORMAT:
                raise ValueError("format")
            told["neurons"] = tuple((int(layer), int(neuron)) for layer, neuron in told["neurons"])
            return cls(**{**told, "scores": tuple(told["scores"]), "marks": tuple(told["marks"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ParameterError(
                f"neurons_file must be one that damro registers wrote, got {str(path)!r} ({type(error).__name__}: "
                f"{error}); write one with damro registers IMAGES --out FILE"
            ) from error


class NeuronScores(NamedTuple):
    """What each neuron does at the outliers of each tile.

    Attributes:
        scores: `(tiles, layers, neurons)`, mean magnitude at outliers; 0 of neurons that are active everywhere, and
            of tiles without outliers.
        outliers: boolean `(tiles, patches)`.
        first: `(tiles,)`, the layer behind which the outliers stand out first.
    """

    scores: Tensor
    outliers: Tensor
    first: Tensor


@torch.no_grad()
def find_register_neurons(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    *,
    count: int = 10,
    outliers: OutlierRule = "norm",
    top_k: int | None = None,
    highest_layer: int | None = None,
) -> RegisterNeurons:
    """Finds register neurons in some images (Jiang et al., arXiv 2506.08010, algorithm 1).

    Of every neuron the mean magnitude of its activation at outliers is taken, in an image, then over the images that
    have outliers; the `count` highest are register neurons. A neuron counts in an image if it is below 0.5 at half of
    the tokens. Layers above the one behind which outliers appear are left out.

    Differences from the authors' code: outliers are patches with vectors above the median by ten scaled median
    absolute deviations, where that has a length for each model (30 for OpenCLIP ViT-B/16, 150 for DINOv2 ViT-L/14); the
    layer at which outliers appear is measured, where that is told by hand.

    Args:
        model: a supported LVLM or a bare ViT.
        batches: inputs, each as its processor returned them.
        count: how many neurons; the authors take 10 of a ViT-B/16 and 50 of a ViT-L/14.
        outliers: "norm"; or "attention", the `top_k` patches with the most [CLS] attention, which is DAMRO's rule.
        top_k: of "attention".
        highest_layer: of the neurons; None takes the median over images of the first layer behind which outliers
            stand out; of "attention", the layer in front of the one that ranks.

    Raises:
        ParameterError: no image has outliers; `count` or `highest_layer` is out of range.
        UnsupportedModelError: a ViT that cannot be given a register.
        InputsError: no images.
    """
    found, tower = [], None
    for inputs in batches:
        tower = tower_family(model, inputs).vision_tower(model, inputs)
        found.append(score_neurons(model, inputs, outliers=outliers, top_k=top_k))
    if tower is None:
        raise InputsError("batches must hold an image or more, got none")
    scores, first = torch.cat([one.scores for one in found]), torch.cat([one.first for one in found])
    having = torch.cat([one.outliers.any(dim=-1) for one in found])
    if not bool(having.any()):
        raise ParameterError(
            f"images must have outliers by the rule 'norm', got none in {len(having)} tiles; pass others, or "
            "outliers='attention' with top_k"
        )
    kind, depth, width = shape_of(tower)
    highest = int(first[having].median()) if highest_layer is None else highest_layer
    if not 0 <= highest < depth:
        raise ParameterError(f"highest_layer must name one of the ViT's {depth} layers, got {highest_layer}")
    check_count(count, (highest + 1) * width)
    best = scores[having].mean(dim=0)[: highest + 1].flatten().topk(count)
    neurons = tuple((int(place) // width, int(place) % width) for place in best.indices)
    recipe = {"images": len(having), "with_outliers": int(having.sum()), "outliers": outliers, "top_k": top_k}
    return RegisterNeurons(
        kind,
        depth,
        width,
        neurons,
        tuple(best.values.tolist()),
        tuple(marks_of(tower, neurons) or ()),
        {**recipe, "highest_layer": highest},
    )


def own_masks(found: NeuronScores, count: int) -> dict[int, Tensor]:
    """By layer, boolean `(tiles, neurons)`: the `count` highest neurons of each tile by itself.

    A tile without outliers has none, and neither has a layer above the one behind which a tile's outliers appear.
    """
    tiles, depth, width = found.scores.shape
    check_count(count, width)
    allowed = torch.arange(depth)[None, :] <= found.first[:, None]  # (tiles, layers)
    allowed &= found.outliers.any(dim=-1, keepdim=True)
    scores = found.scores.masked_fill(~allowed[..., None], -1).flatten(1)
    best = scores.topk(count, dim=-1)
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best.indices, best.values > 0)
    masks = chosen.view(tiles, depth, width)
    return {layer: masks[:, layer] for layer in range(depth) if bool(masks[:, layer].any())}


def score_neurons(
    model: PreTrainedModel, inputs: Mapping[str, Any], *, outliers: OutlierRule = "norm", top_k: int | None = None
) -> NeuronScores:
    """What each neuron does at the outliers of each tile; two runs of the vision tower.

    Args:
        model: a supported LVLM or a bare ViT.
        inputs: what its processor returned.
        outliers: see :func:`find_register_neurons`. Patches are long behind the layer that the features come from, of
            a bare ViT the last; they are ranked by the layer that DAMRO ranks by.
        top_k: of "attention".
    """
    if outliers not in get_args(OutlierRule):
        raise ParameterError(f"outliers must be one of {', '.join(get_args(OutlierRule))}, got {outliers!r}")
    family = tower_family(model, inputs)
    tower = family.vision_tower(model, inputs)
    check_tower(tower)
    ranking = family.feature_layer(model, reference=outliers == "attention")
    norms: dict[int, Tensor] = {}
    with (
        hooked(after=[(block, keep_lengths(norms, number)) for number, block in enumerate(encoder_layers(tower))]),
        record_layers(family, model, inputs, [ranking]) as recorded,
    ):
        encoding = family.encode(model, inputs)
    patches = encoding.grid[0] * encoding.grid[1]
    lengths = torch.stack([norms[number][:, -patches:] for number in range(ranking + 1)])  # (layers, tiles, patches)
    if outliers == "norm":
        flagged = torch.stack([flag_patches(own, None, "mad", _CUTOFF) for own in lengths])  # as lengths
        marked = flagged[-1]
        # The first layer behind which most of them stand out already; the last does for all.
        early = (flagged & marked).sum(dim=-1) * 2 > marked.sum(dim=-1)  # (layers, tiles)
        early[-1] = True
        first = early.long().argmax(dim=0)
    else:
        attention = read_layer(family, model, inputs, recorded, encoding, ranking, family_heads(family))
        marked = flag_patches(attention.weights.cpu(), top_k, "topk")
        first = torch.full((len(marked),), max(ranking - 1, 0))
    kept: dict[int, Tensor] = {}
    downs = [down_projection(block) for block in encoder_layers(tower)]
    with hooked(before=[(down, _keep_scores(kept, number, marked)) for number, down in enumerate(downs)]):
        family.encode(model, inputs)
    return NeuronScores(torch.stack([kept[number] for number in range(len(downs))], dim=1), marked, first)


def _keep_scores(kept: dict[int, Tensor], number: int, marked: Tensor) -> Look:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        states: Tensor = args[0].float()  # (tiles, tokens, neurons)
        at = marked.to(states.device, torch.float32)
        sums = torch.einsum("tp,tpn->tn", at, states[:, -at.shape[1] :].abs())
        means = sums / at.sum(dim=-1, keepdim=True).clamp(min=1)
        quiet = (states < _QUIET).float().mean(dim=1) >= _QUIET_SHARE
        kept[number] = (means * quiet).cpu()

    return hook


def shape_of(tower: nn.Module) -> tuple[str, int, int]:
    """Type of a ViT, number of its layers, and of the neurons of a layer."""
    check_tower(tower)
    layers = encoder_layers(tower)
    config: Any = tower.config
    return str(config.model_type), len(layers), int(down_projection(layers[0]).in_features)


def marks_of(tower: nn.Module, neurons: Iterable[tuple[int, int]]) -> list[float] | None:
    """Length of what each neuron writes; None of weights that are not there in plain numbers (quantized ones)."""
    layers = encoder_layers(tower)
    marks = []
    for layer, neuron in neurons:
        weight = down_projection(layers[layer]).weight
        if weight.ndim != 2 or not weight.is_floating_point():
            return None
        marks.append(float(weight[:, neuron].detach().float().norm()))
    return marks


def check_count(count: int, neurons: int) -> None:
    """Checks a number of neurons.

    Raises:
        ParameterError: unless it is in `1 .. neurons`.
    """
    if not 1 <= count <= neurons:
        raise ParameterError(f"count must be a whole number from 1 to the {neurons} neurons there are, got {count!r}")
