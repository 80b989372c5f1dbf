"""Language models that read some of the columns before them alone: those that an indexer scores highest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import damro
from tests import zoo, zoo_newest
from tests.zoo import NEVER, PROMPTS, Kind, zoo_inputs, zoo_model
from tests.zoo_reference import Stateless, negative_rows, text_rows

GREEDY: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": NEVER}


def _mistral_large4() -> Any:
    config = zoo_newest.NEWEST["mistral_large4"].make()
    config.text_config.index_topk = 8
    return config


def _minimax_m3_vl() -> Any:
    config = zoo_newest.NEWEST["minimax_m3_vl"].make()
    few = {"index_block_size": 4, "index_topk_blocks": 2, "index_local_blocks": 1, "index_n_heads": 2,
           "index_head_dim": 8, "layer_types": ["full_attention", "minimax_m3_sparse"]}  # fmt: skip
    for name, value in few.items():
        setattr(config.text_config, name, value)
    return config


SPARSE: dict[str, Callable[[], Any]] = {"mistral_large4": _mistral_large4, "minimax_m3_vl": _minimax_m3_vl}


def sparse(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """A model of the zoo whose indexer leaves columns out, and its name there."""
    kind = f"{name}_sparse"
    monkeypatch.setitem(zoo.KINDS, kind, Kind(SPARSE[name], zoo_newest.NEWEST[name].shown))
    return kind, zoo_model(kind)


def agrees(name: str, model: Any, inputs: dict[str, Any]) -> list[bool]:
    """Whether either way of decoding gives the tokens of prompts that are read anew: of columns, and of text alone."""
    found = []
    with torch.no_grad():
        kept = negative_rows(name, model, inputs, 3)
    methods = {"damro:alpha=2,beta=0.1,top_k=3": kept, "no-image:alpha=2,beta=0.1": text_rows(model, inputs)}
    for method, rows in methods.items():
        rule = Stateless(model, rows, inputs["input_ids"].shape[1], 2.0, 0.1)
        expected = model.generate(**inputs, logits_processor=[rule], **GREEDY)
        for strategy in ("lazy", "fused"):
            found.append(torch.equal(damro.generate(model, inputs, method, strategy=strategy, **GREEDY), expected))
    return found


class _Untied:
    """`torch.nn.functional` whose relu has no zeros."""

    relu = staticmethod(F.softplus)

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)


def test_an_indexer_without_ties_chooses_the_same_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistral Large 4 scores columns by a relu. Of scores that are 0 alike topk takes any, with padding others."""
    from transformers.models.mistral_large4 import modeling_mistral_large4

    name, model = sparse("mistral_large4", monkeypatch)
    monkeypatch.setattr(modeling_mistral_large4, "F", _Untied())
    assert agrees(name, model, zoo_inputs(name)) == [True] * 4


@pytest.mark.parametrize("prompt", PROMPTS)
def test_blocks_of_columns_are_those_of_the_prompt_alone(prompt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MiniMax M3 counts its blocks from the first column, padding or not, so that padding changes what it reads."""
    name, model = sparse("minimax_m3_vl", monkeypatch)
    assert agrees(name, model, zoo_inputs(name, [prompt])) == [True] * 4


def test_stock_decoding_depends_on_padding_where_blocks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is why prompts of MiniMax M3 in a batch are not compared with those alone."""
    _, model = sparse("minimax_m3_vl", monkeypatch)
    ids = torch.arange(20, 32)[None]
    padded, mask = F.pad(ids, (3, 0)), F.pad(torch.ones_like(ids), (3, 0))
    with torch.no_grad():
        alone = model(input_ids=ids).logits[0, -1]
        other = model(input_ids=padded, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    assert float((alone - other[0, -1]).abs().max()) > 0.1
