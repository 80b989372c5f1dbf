"""Prompts as tables of columns."""

from __future__ import annotations

import pytest
import torch

from damro.decoding.errors import InputsError
from damro.decoding.prompts import VisualPrompt, positions_of, scatter_features


def prompt_of(rows: list[str]) -> VisualPrompt:
    """Rows such as "..tiit": `.` padding, `t` text, `i` image; column c of row r is embedded as 100 r + c."""
    columns = torch.arange(len(rows[0]), dtype=torch.float32)
    return VisualPrompt(
        inputs_embeds=torch.stack([100 * r + columns for r in range(len(rows))]).unsqueeze(-1),
        attention_mask=torch.tensor([[int(c != ".") for c in row] for row in rows]),
        image_mask=torch.tensor([[c == "i" for c in row] for row in rows]),
    )


def columns_of(prompt: VisualPrompt) -> list[list[float]]:
    """What is read of each row."""
    return [
        embeds[mask.bool()].flatten().tolist()
        for embeds, mask in zip(prompt.inputs_embeds, prompt.attention_mask, strict=True)
    ]


def test_kept_columns_stand_where_the_image_stood_in_the_order_asked_for():
    kept = prompt_of(["tiiiit"]).keep([torch.tensor([3, 0, 2])])
    assert columns_of(kept) == [[0, 4, 1, 3, 5]]
    assert kept.image_mask.tolist() == [[False, True, True, True, False]]


def test_each_run_of_image_columns_keeps_its_own():
    # Image columns by ordinal: 1 2 | 4 5 6 are 0 1 | 2 3 4. The order across runs does not matter.
    kept = prompt_of(["tiitiiit"]).keep([torch.tensor([4, 1, 2])])
    assert columns_of(kept) == [[0, 2, 3, 6, 4, 7]]


def test_an_image_may_stand_first_or_last():
    assert columns_of(prompt_of(["iitii"]).keep([torch.tensor([1, 3])])) == [[1, 2, 4]]


def test_rows_are_padded_on_the_left_to_the_longest():
    kept = prompt_of(["tiiit", "..tii"]).keep([torch.tensor([2, 1, 0]), torch.tensor([1])])
    assert columns_of(kept) == [[0, 3, 2, 1, 4], [102, 104]]
    assert kept.attention_mask.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert kept.inputs_embeds[1, :3].eq(0).all()


def test_positions_are_compact():
    kept = prompt_of(["..tiit", "tiiiit"]).keep([torch.tensor([1]), torch.tensor([0, 1, 2])])
    assert kept.position_ids[0, 2:].tolist() == [0, 1, 2]
    assert kept.position_ids[1].tolist() == [0, 1, 2, 3, 4]
    assert kept.lengths.tolist() == [3, 5]


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.uint8, torch.bool, torch.float32])
def test_positions_of_a_mask_of_any_dtype(dtype):
    assert positions_of(torch.tensor([[0, 1, 1, 1]]).to(dtype)).tolist() == [[0, 0, 1, 2]]


def test_masked_text_is_dropped_wherever_it_stands():
    assert columns_of(prompt_of(["t.iit"]).keep([torch.tensor([0])])) == [[0, 2, 4]]


def test_dropping_the_image_leaves_the_text():
    assert columns_of(prompt_of(["tiiit", "..tit"]).drop_image()) == [[0, 4], [102, 104]]


def test_keeping_all_columns_in_order_changes_nothing():
    prompt = prompt_of(["tiitit"])
    kept = prompt.keep([torch.arange(3)])
    assert torch.equal(kept.inputs_embeds, prompt.inputs_embeds)
    assert torch.equal(kept.image_mask, prompt.image_mask)


def test_operations_leave_the_prompt_alone():
    prompt = prompt_of(["tiiit"])
    before = prompt.inputs_embeds.clone()
    prompt.keep([torch.tensor([0])]).inputs_embeds.zero_()
    prompt.replace_image(torch.full((3, 1), 7.0))
    assert torch.equal(prompt.inputs_embeds, before)


def test_replaced_image_columns_go_row_by_row_and_left_to_right():
    prompt = prompt_of(["titi", ".tii"]).replace_image(torch.tensor([[[-1.0], [-2.0]], [[-3.0], [-4.0]]]))
    assert columns_of(prompt) == [[0, -1, 2, -2], [101, -3, -4]]


@pytest.mark.parametrize("ordinal", [3, -1])
def test_an_ordinal_without_a_column_is_an_error(ordinal):
    with pytest.raises(InputsError, match=r"3 image columns.*got \[0, -?\d\] for row 0"):
        prompt_of(["tiiit"]).keep([torch.tensor([0, ordinal])])


def test_a_missing_row_is_an_error():
    with pytest.raises(InputsError, match="one tensor a row: got 1 for 2 rows"):
        prompt_of(["tit", "tit"]).keep([torch.tensor([0])])


def test_features_take_the_dtype_of_the_text():
    embeds = torch.zeros(1, 3, 2, dtype=torch.bfloat16)
    written = scatter_features(embeds, torch.tensor([[False, True, True]]), torch.ones(1, 2, 2))
    assert written.dtype == torch.bfloat16
    assert written[0, :, 0].tolist() == [0, 1, 1]


def test_features_and_columns_must_be_of_one_number():
    with pytest.raises(InputsError, match="got 2 tokens for 3 features; pass what the model's own processor"):
        scatter_features(torch.zeros(1, 3, 2), torch.tensor([[False, True, True]]), torch.ones(3, 2))
