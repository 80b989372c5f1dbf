"""A language model's step as one compiled graph: when that can be, and the graph of a model."""

from __future__ import annotations

import shutil
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

from damro.decoding.branches.fused import why_alone
from damro.decoding.compat import CACHE
from damro.decoding.errors import UnsupportedModelError
from damro.decoding.families.base import is_encoder_decoder

_COPIES, _COMPILER = 2, 1 << 30
"""What packing must have memory for: copies of the weights, of which one stays, and bytes of the compiler's own."""
Step = Callable[[Tensor, Tensor, Any], Tensor]
"""From tokens `(N, 1)`, positions `(N, 1)` and a cache to logits `(N, V)`."""


class Compiled(NamedTuple):
    """A model's graph.

    Attributes:
        step: the graph.
        packed: whether it has a packed copy of the weights.
        weights: what tells the weights that it was made of.
    """

    step: Step
    packed: bool
    weights: tuple[tuple[int, int], ...]


_GRAPHS: weakref.WeakKeyDictionary[Any, Compiled] = weakref.WeakKeyDictionary()


def why_interpreted(decoder: Any) -> str | None:
    """Why a language model's step cannot be compiled; None if nothing speaks against it before it is tried.

    Returns:
        A clause, as in "compile must be left out, as ...".
    """
    if is_encoder_decoder(decoder):
        return "it has an encoder"
    if (why := why_alone(decoder)) is not None:
        return why
    if getattr(decoder, "is_quantized", False):
        return "its weights are quantized"
    if len({weight.device for weight in decoder.parameters()}) > 1 or next(decoder.parameters()).device.type == "meta":
        return "its weights lie on several devices, or are offloaded"
    return _lacks_compiler(decoder.device)


def check_compiles(decoder: Any) -> None:
    """Refuses models whose step cannot be compiled.

    Raises:
        UnsupportedModelError: saying why.
    """
    if (why := why_interpreted(decoder)) is not None:
        raise UnsupportedModelError(
            f"compile must be left out with this {decoder.config.model_type}, as {why}; decode without it"
        )


def _lacks_compiler(device: torch.device) -> str | None:
    """What is not there that code for a device is made with: a C++ compiler, or Triton on a GPU."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            found = shutil.which(get_cpp_compiler())
        except InvalidCxxCompiler:
            found = None
        return None if found else "there is no C++ compiler here, such as g++"
    from torch.utils._triton import has_triton

    return None if has_triton() else f"there is no Triton here, which makes code for {device.type}"


def packs(decoder: Any) -> bool:
    """Whether weights are packed for products of a few rows, which a step is made of: a second row costs less then.

    On a CPU with AVX2 or AVX-512, in float32 and bfloat16, where memory has room for the copy.

    Args:
        decoder: the causal language model with its head.
    """
    if decoder.device.type != "cpu" or decoder.dtype not in (torch.float32, torch.bfloat16):
        return False
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    size: int = sum(weight.nbytes for weight in decoder.parameters())
    available: int = psutil.virtual_memory().available
    return _COPIES * size + _COMPILER < available


def compiled_step(decoder: Any) -> Compiled:
    """A model's step as a graph; made when it is first run, kept as long as the model, made anew with other weights.

    Where weights are packed, see :func:`packs`, they are a second copy, which does not follow the model's: the memory
    of the language model doubles.

    Args:
        decoder: the causal language model with its head.
    """
    weights = tuple((weight.data_ptr(), weight._version) for weight in decoder.parameters())
    held = _GRAPHS.get(decoder)
    if held is None or held.weights != weights:
        held = _GRAPHS[decoder] = Compiled(_compile(decoder), packs(decoder), weights)
    return held


def _compile(decoder: Any) -> Step:
    kept = weakref.ref(decoder)

    def step(tokens: Tensor, positions: Tensor, cache: Any) -> Tensor:
        model: Any = kept()
        output = model(input_ids=tokens, position_ids=positions, use_cache=True, logits_to_keep=1, **{CACHE: cache})
        logits: Tensor = output.logits[:, -1]
        return logits

    # Graphs are kept by code object: models that shared one would push each other out.
    own = types.FunctionType(step.__code__.replace(), step.__globals__, "step", None, step.__closure__)
    on_gpu = decoder.device.type != "cpu"
    graph: Step = torch.compile(own, fullgraph=True, mode="reduce-overhead" if on_gpu else None)
    return graph


@contextmanager
def compiling(*, packed: bool) -> Iterator[None]:
    """What a graph is made and run under.

    Args:
        packed: whether weights are packed.

    Raises:
        UnsupportedModelError: the compiler gave up.
    """
    import torch._inductor.config as inductor
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    # Weights become constants of the graph, which are packed, and products the compiler's own code, whose second row
    # does not cost as much as the first. Read while a graph is made, whenever that is.
    options = {"freezing": True, "max_autotune_gemm": True, "max_autotune_gemm_backends": "CPP"} if packed else {}
    try:
        with inductor.patch(options):
            yield
    except (TorchDynamoException, InductorError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnsupportedModelError(
            f"compile must be left out with this model, whose step torch cannot compile: {reason.strip()}; decode "
            "without it"
        ) from error
