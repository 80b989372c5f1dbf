"""GLSim's crop: the region that is most like the whole image, read once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from damro.decoding.errors import UnsupportedModelError
from damro.methods.base import Cost, Method, Scene
from damro.parameters import Cutoff, Range, Strength

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from damro.decoding.prompts import Prompt, VisualPrompt
    from damro.decoding.rules import Contrast

Top = Annotated[int, Range(1, hint="8 is what GLSim was released with")]


@dataclass(frozen=True)
class Crop(Method):
    """The image and the crop of it that holds the patches most like [CLS] (GLSim, arXiv 2407.12891).

    GLSim classifies fine-grained images: it takes the `patches` with the highest cosine to [CLS] behind the encoder,
    cuts out the smallest rectangle that holds them, stretches it to the image's size, encodes it too, and joins both.
    Cosine, number and stretching (bilinear) are its own. That a language model reads the crop is the project's own, and
    so are both ways of it: the crop's columns behind the image's (``way=beside``), decoded plainly, or the crop in
    place of the image in a second prompt whose logits are added (``way=branch``), `f + alpha c` over the tokens that
    are plausible for the image.

    Differences from the released code: similarity is of the layer whose features the language model gets, before a
    final norm; the rectangle holds its last row and column of patches, which the code's slices leave out. Where the ViT
    has no [CLS], the mean of the patches stands for it, as in the code for such ViTs.

    Attributes:
        patches: how many the rectangle holds at least.
        way: beside, as a second image of the same prompt; branch, as the image of a second prompt.
        alpha: of branch, weight of the crop's logits.
        beta: of branch, plausibility cutoff.
    """

    name: ClassVar = "crop"
    source: ClassVar = "after GLSim, arXiv 2407.12891; github.com/arkel23/GLSim, glsim/model_utils/glsim.py"
    cost: ClassVar = Cost(looks=1, memory="keys and values of a second image")
    limits: ClassVar = ("images cut into tiles, videos", "models of prompts of tokens (Qwen-VL, InternVL, ...)")
    code: ClassVar = "github.com/arkel23/GLSim"

    patches: Top = 8
    way: Literal["beside", "branch"] = "beside"
    alpha: Strength = 1.0
    beta: Cutoff = 0.1

    def contrast(self, model: PreTrainedModel, inputs: Mapping[str, Any], scene: Scene) -> Contrast | Prompt:
        """The prompt with the crop's columns, or the prompt and that of the crop."""
        from damro.decoding.branches.prefix import encode_images
        from damro.decoding.families import check_inputs, family_of
        from damro.decoding.prompts import embedded
        from damro.decoding.rules import Contrast, MixRule
        from damro.vision.features import record_outputs
        from damro.vision.outliers import check_top_k

        check_inputs(model, inputs)
        family: Any = family_of(model)
        key = pixels_of_one_tile(family, model, inputs)
        layer = family.feature_layer(model, reference=False)
        with record_outputs(family.vision_tower(model, inputs), [layer]) as recorded:
            run = Scene.look(scene, model, inputs)  # not one that others share: it must be seen
        grid = run.encoding.grid
        check_top_k(self.patches, grid[0] * grid[1])
        scores = similarities(family.vision_tower(model, inputs), recorded[layer], grid)
        cropped = {**inputs, key: crop_pixels(inputs[key], boxes(scores, grid, self.patches), grid)}
        encoding = encode_images(model, cropped, shared=scene.shared_image)
        full = scene.full_prompt(model, inputs, run)
        if self.way == "branch":
            other = family.full_prompt(model, cropped, encoding)
            return Contrast(full, other, MixRule(1.0, self.alpha, self.beta))
        return append_columns(embedded(full), encoding.features, encoding.rows)


def pixels_of_one_tile(family: Any, model: PreTrainedModel, inputs: Mapping[str, Any]) -> str:
    """The name of the pixels, of a family in which an image is one tile.

    Raises:
        UnsupportedModelError: images are cut into tiles, there are videos, or prompts are made of tokens.
    """
    key: str = next(name for name in family.PIXELS if inputs.get(name) is not None)
    if hasattr(family, "column_weights") or inputs[key].ndim != 4:
        raise UnsupportedModelError(
            "model must see an image as one square that can be cropped (LLaVA-1.5, ViP-LLaVA, InstructBLIP, BLIP-2, "
            f"PaliGemma), got {model.config.model_type} with {key} of shape {tuple(inputs[key].shape)}; use another "
            "method"
        )
    return key


def similarities(tower: Any, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cosine between each patch and [CLS], or the mean patch where there is none: `(tiles, patches)`.

    Args:
        tower: the ViT.
        hidden: `(tiles, tokens, C)`, what a layer of it puts out.
        grid: patch rows and patch columns.
    """
    from torch.nn.functional import cosine_similarity

    from damro.vision.sources import has_cls

    states = hidden.float()
    patches = states[:, -grid[0] * grid[1] :]
    whole = states[:, :1] if has_cls(tower) else patches.mean(dim=1, keepdim=True)
    return cosine_similarity(patches, whole, dim=-1)


def boxes(scores: Tensor, grid: tuple[int, int], count: int) -> list[tuple[int, int, int, int]]:
    """For each tile the smallest rectangle that holds its `count` highest patches: first and last row, then column.

    Example:
        >>> import torch
        >>> boxes(torch.tensor([[0.0, 0.9, 0.1, 0.0, 0.2, 0.8, 0.1, 0.0, 0.0]]), (3, 3), 2)
        [(0, 1, 1, 2)]
    """
    best = scores.argsort(dim=-1, descending=True, stable=True)[:, :count]
    rows, columns = best // grid[1], best % grid[1]
    ends = (rows.amin(-1), rows.amax(-1), columns.amin(-1), columns.amax(-1))
    return [(a, b, c, d) for a, b, c, d in zip(*(end.tolist() for end in ends), strict=True)]


def crop_pixels(pixels: Tensor, found: Sequence[tuple[int, int, int, int]], grid: tuple[int, int]) -> Tensor:
    """Rectangles of patches stretched to the size of their images.

    Args:
        pixels: `(images, channels, H, W)`; of an image that all prompts share there may be more copies than rectangles.
        found: see :func:`boxes`.
        grid: patch rows and patch columns of an image.

    Returns:
        `(rectangles, channels, H, W)`.
    """
    import torch
    from torch.nn.functional import interpolate

    size = pixels.shape[-2:]
    down, across = size[0] // grid[0], size[1] // grid[1]
    crops = []
    for image, (top, bottom, left, right) in zip(pixels, found, strict=False):
        part = image[None, :, top * down : (bottom + 1) * down, left * across : (right + 1) * across]
        crops.append(interpolate(part.float(), size=size, mode="bilinear", align_corners=True).to(pixels.dtype))
    return torch.cat(crops)


def append_columns(prompt: VisualPrompt, features: Sequence[Tensor], rows: Sequence[int]) -> VisualPrompt:
    """Puts further image columns behind the last image column of each row.

    Args:
        prompt: B rows.
        features: of each image `(columns, D)`.
        rows: for each image, its row.

    Returns:
        A prompt whose rows are padded on the left; of an encoder's, too, which sees no padding.
    """
    import torch
    from torch.nn.functional import pad

    embeds, masks, images = [], [], []
    for row in range(len(prompt.image_mask)):
        read = prompt.attention_mask[row].bool()
        columns, image = prompt.inputs_embeds[row, read], prompt.image_mask[row, read]
        own = torch.cat([one for one, place in zip(features, rows, strict=True) if place == row]).to(columns)
        at = int(image.nonzero().max()) + 1 if bool(image.any()) else 0
        embeds.append(torch.cat([columns[:at], own, columns[at:]]))
        images.append(torch.cat([image[:at], image.new_ones(len(own)), image[at:]]))
        masks.append(prompt.attention_mask.new_ones(len(embeds[-1])))
    width = max(map(len, embeds))
    left = [width - len(one) for one in embeds]
    return replace(
        prompt,
        inputs_embeds=torch.stack([pad(one, (0, 0, space, 0)) for one, space in zip(embeds, left, strict=True)]),
        attention_mask=torch.stack([pad(one, (space, 0)) for one, space in zip(masks, left, strict=True)]),
        image_mask=torch.stack([pad(one, (space, 0)) for one, space in zip(images, left, strict=True)]),
    )
