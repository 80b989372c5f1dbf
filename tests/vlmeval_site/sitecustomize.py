"""On the path of `make test-vlmeval`: lets torchvision be imported beside a CPU build of torch.

VLMEvalKit imports torchvision, whose wheels on PyPI are built for CUDA. Their operators do not load beside a CPU build
of torch, and torchvision then fails at the first of them that it describes. What VLMEvalKit and transformers use of it,
the transforms, needs none: it is enough that the operators have been declared.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
