"""How long a run takes at least: what must be read over peak bandwidth, what must be computed over peak arithmetic.

Bounds from shapes and data sheets; nothing is measured. Attention's own products, sampling, the first and last few
operations and everything outside the model are left out, so a real run takes longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from damro.speed.shapes import Shape

_PATCH_PIXELS = 3 * 14**2
_BYTES = 2  # bfloat16


class Accelerator(NamedTuple):
    """What a data sheet says.

    Attributes:
        bandwidth: Peak bytes a second from its memory.
        flops: Peak floating-point operations a second in dense bfloat16.
    """

    bandwidth: float
    flops: float


# NVIDIA's data sheets; those of H100 and H200 give 1,979 TFLOP/s "with sparsity", of which dense matrices have half.
ACCELERATORS = {
    "A100 80GB SXM": Accelerator(2.039e12, 312e12),
    "H100 SXM": Accelerator(3.35e12, 989e12),
    "H200 SXM": Accelerator(4.8e12, 989e12),
}


@dataclass(frozen=True)
class Load:
    """What is asked of a model.

    Attributes:
        groups: Calls, one after the other; the last one may be a part of one.
        images: Different images a call.
        questions: Rows a call. Those about one image share its columns and what stands in front of them.
        tokens: Tokens of an answer, with the one that ends it.
        before: Columns of text in front of an image.
        after: Columns of text behind it.
        negative: Image columns of a second prompt, decoded as further rows of the same passes; None for plain decoding.
    """

    groups: float
    images: int
    questions: int
    tokens: int
    before: int = 5
    after: int = 20
    negative: int | None = None


class Bound(NamedTuple):
    """Least seconds.

    Attributes:
        vision: Of the vision tower.
        prompts: Of reading the prompts.
        steps: Of all tokens behind the first.
    """

    vision: float
    prompts: float
    steps: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self)


def language_weights(shape: Shape) -> tuple[int, int]:
    """Return the numbers of weights of a language model's layers, and of its output layer, as one token reads them.

    Example:
        >>> from damro.speed.shapes import SHAPES
        >>> layers, head = language_weights(SHAPES["llava-1.5-7b"])
        >>> round((layers + head) * 2 / 1e9, 2)  # GB in bfloat16
        13.22
    """
    key_value = shape.hidden * shape.kv_heads // shape.heads
    attention = 2 * shape.hidden * (shape.hidden + key_value)
    layer = attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    return shape.layers * layer + shape.hidden, shape.hidden * shape.vocabulary


def vision_weights(shape: Shape) -> int:
    """Return the number of weights in matrices that each patch passes: those of the ViT's layers and of its patches."""
    return shape.vision_layers * 12 * shape.vision_hidden**2 + shape.vision_hidden * _PATCH_PIXELS


def bound(shape: Shape, accelerator: Accelerator, load: Load) -> Bound:
    """Return the least time that a load takes in bfloat16.

    A pass takes what reading the weights and the keys and values in front of it takes, or two operations a weight and
    column, whichever is more.

    Args:
        shape: The model.
        accelerator: What it runs on.
        load: What is asked of it.
    """
    layers, head = language_weights(shape)
    vision, patches = vision_weights(shape), shape.grid**2
    kv = 2 * shape.layers * shape.hidden * shape.kv_heads // shape.heads  # numbers a column

    def seconds(weights: int, columns: float, logits: int = 0, cached: float = 0) -> float:
        read = _BYTES * (weights + (head if logits else 0) + kv * cached)
        computed = 2 * (weights * columns + head * logits)
        return max(read / accelerator.bandwidth, computed / accelerator.flops)

    branches = [patches] if load.negative is None else [patches, load.negative]
    rows = load.questions * len(branches)
    prefixes = load.images * sum(load.before + image for image in branches)
    tails = rows * load.after
    if load.images < load.questions:  # prefixes are read once, then all that differs
        prompts = seconds(layers, prefixes) + seconds(layers, tails, rows, prefixes)
    else:
        prompts = seconds(layers, prefixes + tails, rows)
    steps = sum(seconds(layers, rows, rows, prefixes + tails + rows * step) for step in range(load.tokens - 1))
    looked = seconds(vision, load.images * patches)
    return Bound(load.groups * looked, load.groups * prompts, load.groups * steps)


LOADS = {
    # Three splits of 500 images with six questions each; an answer is a word and the end.
    "POPE, plain": Load(1500, 1, 6, 2),
    "POPE, damro": Load(1500, 1, 6, 2, negative=10),
    "POPE, plain, question by question": Load(9000, 1, 1, 2),
    # 500 captions of about a hundred tokens, alone and sixteen at a time.
    "CHAIR, plain": Load(500, 1, 1, 100),
    "CHAIR, damro": Load(500, 1, 1, 100, negative=10),
    "CHAIR, plain, batch 16": Load(500 / 16, 16, 16, 100),
    "CHAIR, damro, batch 16": Load(500 / 16, 16, 16, 100, negative=10),
}


def table(shape: Shape) -> str:
    """Return the least seconds of every load on every accelerator, as Markdown."""
    lines = [f"| least seconds, computed | {' | '.join(ACCELERATORS)} |", "|---|" + "---:|" * 3]
    for name, load in LOADS.items():
        cells = [f"{bound(shape, one, load).total:.0f}" for one in ACCELERATORS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
