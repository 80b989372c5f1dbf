"""ONLY against its equations on stock eager models, and against what its authors' code computed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import damro
from damro.decoding.errors import ParameterError, UnsupportedModelError
from damro.methods import Only
from damro.methods.only import OnlyRule, text_led
from tests.family_models import encoder_inputs, family_inputs, family_model
from tests.golden_cases import Inputs
from tests.llava_models import llava_inputs, llava_of
from tests.test_methods_dola import row_alone

DEPTH, NEW = 6, 6
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def kept_and_entropy(weights: list[float]) -> tuple[list[float], float]:
    """Weights without those that stand out, and the entropy of what is left, in plain numbers."""
    mean = sum(weights) / len(weights)
    spread = math.sqrt(sum((one - mean) ** 2 for one in weights) / (len(weights) - 1)) if len(weights) > 1 else math.nan
    kept = [0.0 if one > mean + spread else one for one in weights]
    return kept, -sum(one / sum(kept) * math.log(one / sum(kept) + 1e-6) for one in kept)


def side_logits(model: Any, rows: Tensor, pixels: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """`(V,)` each: the model's own logits behind one prompt, and those of the layer's changed attention."""
    body = model.get_decoder()
    seen: dict[str, Tensor] = {}
    handles = [
        body.layers[layer].self_attn.v_proj.register_forward_hook(
            lambda module, args, output: seen.__setitem__("values", output[0])
        ),
        body.layers[-2].register_forward_hook(lambda module, args, output: seen.__setitem__("entering", output[0, -1])),
        body.layers[-1].register_forward_hook(lambda module, args, output: seen.__setitem__("leaving", output[0, -1])),
    ]
    output = model(input_ids=rows, pixel_values=pixels, output_attentions=True)
    for handle in handles:
        handle.remove()
    attention = output.attentions[layer][0, :, -1].tolist()
    columns = range(rows.shape[1])
    image = [column for column in columns if rows[0, column] == model.config.image_token_id]
    text = [column for column in columns if column and column not in image]  # the first token takes no part
    heads, ratios = list[Tensor](), list[float]()
    for weights in attention:
        of_text, text_entropy = kept_and_entropy([weights[column] for column in text])
        of_image, image_entropy = kept_and_entropy([weights[column] for column in image])
        kept = dict(zip([*text, *image, 0], [*of_text, *of_image, weights[0]], strict=True))
        ratios.append(text_entropy / image_entropy)
        heads.append(torch.tensor([kept[column] for column in columns]))
    size = body.layers[layer].self_attn.head_dim
    groups = len(heads) // (seen["values"].shape[-1] // size)
    attended = []
    for head, weights in enumerate(heads):
        values = seen["values"][:, head // groups * size : (head // groups + 1) * size]
        attended.append((weights * (ratios[head] >= sum(ratios) / len(ratios))) @ values)
    last = body.layers[-1]
    side = last.input_layernorm(body.layers[layer].self_attn.o_proj(torch.cat(attended))) + 0.2 * seen["entering"]
    side = side + last.mlp(last.post_attention_layernorm(side))
    return output.logits[0, -1], model.lm_head(body.norm(side) + 0.5 * body.norm(seen["leaving"]))


def write_by_hand(model: Any, inputs: Inputs, method: Only) -> list[int]:
    rows = inputs["input_ids"]
    for _ in range(NEW):
        full, other = side_logits(model, rows, inputs["pixel_values"], method.layer)
        apart = float((full.softmax(-1) - other.softmax(-1)).abs().sum())
        assert method.gamma is not None
        assert method.beta is not None
        mixed = full + method.alpha_pos * other if apart < method.gamma else (
            (1 + method.alpha_neg) * full - method.alpha_neg * other
        )  # fmt: skip
        mixed = mixed.masked_fill(full.softmax(-1) < method.beta * full.softmax(-1).max(), -torch.inf)
        rows = torch.cat([rows, mixed.argmax().view(1, 1)], dim=-1)
    return rows[0, -NEW:].tolist()


@pytest.mark.parametrize("method", [Only(gamma=0.8, beta=0.1), Only(2.0, 0.5, 0.7, 0.01, layer=2)], ids=str)
@torch.no_grad()
def test_tokens_are_those_of_the_equations(method: Only) -> None:
    model, inputs = llava_of(text={"num_hidden_layers": DEPTH}), llava_inputs(rows=2)
    model.set_attn_implementation("eager")
    expected = [write_by_hand(model, row_alone(inputs, row), method) for row in range(2)]
    model.set_attn_implementation("sdpa")
    assert damro.generate(model, inputs, method, **OPTIONS)[:, -NEW:].tolist() == expected
    assert damro.generate(model, inputs, "greedy", **OPTIONS)[:, -NEW:].tolist() != expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Only(gamma=0.2, beta=0.1), [[83, 161, 131, 36, 152, 53, 170, 161], [12, 88, 161, 37, 73, 127, 115, 73]]),
        (Only(gamma=1.2, beta=0.1), [[26, 26, 26, 4, 4, 4, 52, 12], [90, 74, 37, 73, 90, 71, 172, 170]]),
        (Only(2.0, 0.5, 1.3, 0.01, 2), [[4, 164, 83, 152, 53, 172, 37, 12], [53, 45, 178, 12, 37, 125, 37, 125]]),
    ],
    ids=str,
)
def test_tokens_are_those_of_the_authors_code(method: Only, expected: list[list[int]]) -> None:
    """Of the attention, the last layer and the rule in zifuwan/ONLY, a prompt at a time, its columns put right."""
    model, inputs = llava_of(text={"num_hidden_layers": DEPTH}), llava_inputs(rows=2)
    found = damro.generate(model, inputs, method, **OPTIONS | {"max_new_tokens": 8})
    assert found[:, -8:].tolist() == expected


def test_the_parts_by_hand() -> None:
    random = torch.Generator().manual_seed(1)
    weights = torch.rand(2, 3, 9, generator=random).softmax(-1) ** 2
    image = torch.tensor([[False] * 3 + [True] * 4 + [False] * 2, [False] + [True] * 5 + [False] * 3])
    text = ~image
    text[:, 0] = False
    found = text_led(weights, image, text)
    for row in range(2):
        ratios, kept = [], weights[row].clone()
        for head in range(3):
            entropies = []
            for part in (text[row], image[row]):
                left, entropy = kept_and_entropy(weights[row, head, part].tolist())
                kept[head, part] = torch.tensor(left)
                entropies.append(entropy)
            ratios.append(entropies[0] / entropies[1])
        kept[torch.tensor(ratios) < sum(ratios) / 3] = 0
        torch.testing.assert_close(found[row], kept)


def test_rows_that_are_decided_need_no_other_logits() -> None:
    rule = OnlyRule(gamma=0.5)
    full = torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.9, 0.0]])
    assert rule.needed(full, 0).tolist() == [[False] * 3, [True] * 3]
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert rule(full, None, 0)[0].tolist() == rule(full, noise, 0)[0].tolist() == [0.0, -torch.inf, -torch.inf]


def test_what_the_model_and_the_task_decide() -> None:
    assert (Only().settle("llava", "pope").gamma, Only().settle("llava", "chair").gamma) == (0.2, 0.25)
    assert (Only().settle("llava", "mme").beta, Only().settle("llava").beta, Only().settle("llava").gamma) == (
        0.4,
        0.1,
        0.1,
    )
    assert (Only().settle("llava").normed, Only().settle("instructblip").normed) == (True, False)
    assert Only(normed=True).settle("instructblip").normed is True


def test_what_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"gamma must be in \[0, 2\], got 3.0"):
        Only(gamma=3.0)
    with pytest.raises(ParameterError, match="layer must name one of the model's 2 layers .* got 2"):
        damro.generate(llava_of(), llava_inputs(), Only(layer=2), **OPTIONS)
    with pytest.raises(UnsupportedModelError, match="language model must have layers of .* got OPTDecoderLayer"):
        damro.generate(family_model("blip-2"), family_inputs("blip-2"), "only", **OPTIONS)
    with pytest.raises(UnsupportedModelError, match="left to right"):
        damro.generate(family_model("blip-2-t5"), encoder_inputs("blip-2-t5", 1), "only", max_new_tokens=2)
    with pytest.raises(ParameterError, match="output_attentions must be left out"):
        damro.generate(llava_of(), llava_inputs(), "only", output_attentions=True, return_dict_in_generate=True)
