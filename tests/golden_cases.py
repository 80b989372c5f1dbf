"""The golden models, inputs and runs, in the form that transformers 5 and the tests want them.

``tests/golden`` is a part of a larger recording, which is used too where it lies beside the repository.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    InstructBlipForConditionalGeneration,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
)

COMMITTED = Path(__file__).parent / "golden"
WHOLE = Path(__file__).parents[2] / "shared" / "golden"
FAMILIES = ("llava", "llava_next", "instructblip")
IMAGE_TOKEN = 199
PAD_TOKEN = 0
NEW_TOKENS = 24
Inputs = dict[str, Tensor]

_CLASSES = {
    "llava": LlavaForConditionalGeneration,
    "llava_next": LlavaNextForConditionalGeneration,
    "instructblip": InstructBlipForConditionalGeneration,
}


@dataclass(frozen=True)
class GoldenRun:
    """One recorded run: how it was made and where its tensors are.

    ``comparable`` is False where the recording's full prompt is not what transformers 5 computes.
    """

    name: str
    family: str
    inputs: str
    strengths: dict[str, Any] | None
    sample_seed: int | None
    eos: int | None
    path: Path
    comparable: bool

    def tensors(self) -> Inputs:
        return load_file(self.path)


def golden_runs(home: Path = COMMITTED) -> list[GoldenRun]:
    """The runs of a recording: all that are committed, or those of `WHOLE` where it is present."""
    if not (home / "index.json").is_file():
        return []
    runs = []
    for record in json.loads((home / "index.json").read_text())["runs"]:
        damro = record["damro"]
        runs.append(
            GoldenRun(
                name=record["id"],
                family=record["checkpoint"].removesuffix("_s0"),
                inputs=record["inputs"],
                strengths=damro and {"alpha": damro["alpha"], "beta": damro["beta"], "top_k": damro["topk"]},
                sample_seed=record["sample_seed"],
                eos=record["eos"],
                path=home / record["path"],
                comparable=not record["inputs"].endswith("grid1x2"),
            )
        )
    return runs


@lru_cache
def model_of(family: str, attention: str = "sdpa") -> Any:
    """A golden model, shared between tests: none may leave a change on it."""
    # sdpa is the default where a model has it; InstructBLIP's Q-Former had not when transformers 5.10 came out.
    return fresh_model(family, **({} if attention == "sdpa" else {"attn_implementation": attention}))


def fresh_model(family: str, **options: Any) -> PreTrainedModel:
    """A golden model of one's own."""
    path = COMMITTED / "checkpoints" / f"{family}_s0"
    return _CLASSES[family].from_pretrained(path, **options).eval()


def inputs_of(name: str) -> Inputs:
    """Inputs such as "llava_img0" with one image token a column, as processors of transformers 5 return them."""
    home = COMMITTED if (COMMITTED / "inputs" / f"{name}.safetensors").is_file() else WHOLE
    stored = load_file(home / "inputs" / f"{name}.safetensors")
    inputs = {
        key: value
        for key, value in stored.items()
        if key in ("pixel_values", "image_sizes", "qformer_input_ids", "qformer_attention_mask")
    }
    inputs["input_ids"] = stored["expanded_input_ids"]
    inputs["attention_mask"] = stored["expanded_attention_mask"]
    if name.endswith("grid1x2"):
        inputs |= _with_image_tokens(home, name, 52)
    return inputs


def _with_image_tokens(home: Path, name: str, columns: int) -> Inputs:
    """The prompt with another number of image tokens.

    4.43 swapped the sides of tile grids that are not square. Two tiles side by side are 4 rows of 8 patches, each
    row with a newline: 36 columns, and 16 of the base tile.
    """
    record = json.loads((home / "index.json").read_text())["inputs"][name]
    ids = torch.tensor([[*record["text_before"][0], *[IMAGE_TOKEN] * columns, *record["text_after"][0]]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def row_alone(inputs: Inputs, row: int) -> Inputs:
    """One row of a batch as a prompt of its own, without its padding."""
    alone = {key: value[row : row + 1] for key, value in inputs.items()}
    columns = alone["attention_mask"][0].bool()
    alone["input_ids"] = alone["input_ids"][:, columns]
    alone["attention_mask"] = alone["attention_mask"][:, columns]
    return alone


def prompt_length(inputs: Inputs) -> int:
    """Columns of the prompt; ``generate`` returns them in front of what it wrote."""
    return int(inputs["input_ids"].shape[1])
