"""Every block of README and documentation is run, with its output, or says why not; a page for every public name."""

import json
import math
import re
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import page_blocks
import pytest
import torch
from page_blocks import ROOT, RUN, command_lines, find_blocks, is_told, pages, play, reader_at
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

import damro
from damro.cli import build_parser
from damro.decoding.rules import ContrastRule
from damro.eval.chair import score as score_captions
from damro.methods import METHODS

Reader = Callable[[str], tuple[dict[str, Any], list[str]]]
SLOW = ("docs/cli.md",)
PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
EVERY_PAGE = pytest.mark.parametrize("name", PAGES)
RUN_PAGES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name, page in PAGES.items()
    if any(block.steps for block in find_blocks(page.read_text()))
]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Runs a page once: the names that it leaves, and a line for each output that is not the one that stands there."""

    @cache
    def run(name: str) -> tuple[dict[str, Any], list[str]]:
        names: dict[str, Any] = {}
        with reader_at(tmp_path_factory.mktemp("reader")):
            played = list(play(PAGES[name].read_text(), names, name))
        return names, [
            f"{step.source}\nprints\n{printed}\nand not\n{step.wanted}"
            for step, printed in played
            if not is_told(step, printed)
        ]

    return run


@pytest.mark.parametrize("name", RUN_PAGES)
def test_a_page_prints_what_stands_there(name: str, read: Reader) -> None:
    _, wrong = read(name)
    assert not wrong, f"python tests/page_blocks.py {name} writes what is printed now\n" + "\n\n".join(wrong)


@EVERY_PAGE
def test_every_block_is_run_or_says_why_not(name: str) -> None:
    text = PAGES[name].read_text()
    found = find_blocks(text)
    outputs = sum(step.source == block.code and bool(step.wanted) for block in found for step in block.steps)
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * (len(found) + outputs), "a fence is not read"
    left = [f"line {one.line}: {one.language}" for one in found if one.reason is None and one.language not in RUN]
    assert left == [], "run them (python, console), or put <!-- not run: the reason --> in the line above"
    empty = [f"line {one.line}" for one in found if one.language == "console" and one.reason is None and not one.steps]
    assert empty == [], "a console's block has commands behind '$ '"


@EVERY_PAGE
def test_what_is_not_run_can_be_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    for block in find_blocks(PAGES[name].read_text()):
        if block.language == "python":
            compile(block.code, f"{name}, line {block.line}", "exec")
        elif block.language == "toml":
            tomllib.loads(block.code)
        elif block.language == "json":
            json.loads(block.code)
        elif block.language in ("sh", "console"):
            for words in command_lines(block):
                try:
                    parser.parse_args(words[1:])
                except SystemExit:
                    pytest.fail(f"{name}, line {block.line}: {words}: {capsys.readouterr().err}")


def test_most_pages_are_run() -> None:
    assert len(RUN_PAGES) > len(damro.__all__) + 8


@pytest.mark.parametrize("name", damro.__all__)
def test_a_public_name_has_a_page(name: str) -> None:
    page = ROOT / f"docs/api/{name}.md"
    assert page.exists(), f"docs/api/{name}.md: a sentence, a program with its output, and '::: damro.{name}'"
    text = page.read_text()
    assert f"\n::: damro.{name}\n" in text
    programs = [block for block in find_blocks(text) if block.steps]
    assert programs and all(step.wanted for block in programs for step in block.steps), "a program with its output"
    assert f"[`{name}`]({name}.md)" in (ROOT / "docs/api/index.md").read_text()


def test_public_names_come_first() -> None:
    told = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r": api/(\w+)\.md$", told, re.MULTILINE)
    assert sorted(listed[: len(damro.__all__)]) == sorted(damro.__all__)
    assert listed[len(damro.__all__) :] == ["damro", "decoding", "eval"]


def test_an_output_that_is_not_so_is_found(tmp_path: Path) -> None:
    page = """
```python
x = 2
print(x + 1)
```

```text
3
```

<!-- not run: for the reader -->
```sh
rm -rf everything
```

```python
print(x)
```

```console
$ echo one two \\
    three
one ... three
$ echo four
five
```
"""
    with reader_at(tmp_path):
        played = list(play(page, {}))
    assert [printed for _, printed in played] == ["3\n", "2\n", "one two three\n", "four\n"]
    assert [is_told(step, printed) for step, printed in played] == [True, False, True, False]
    assert [block.reason for block in find_blocks(page)] == [None, "for the reader", None, None]
    file = tmp_path / "page.md"
    file.write_text(page)
    assert page_blocks.rewrite(file) == 2 and page_blocks.rewrite(file) == 0
    told = page.replace("print(x)\n```\n", "print(x)\n```\n\n```text\n2\n```\n").replace("five", "four")
    assert file.read_text() == told


def test_the_tutorial_finds_what_it_says(read: Reader) -> None:
    names, _ = read("docs/tutorial.md")
    assert names["plain"] and names["contrasted"]
    assert names["result"].n == 8  # what the text says of the questions
    truth = {0: [thing.name for thing in names["picture"].objects]}
    wrong = [
        [one.word for one in score_captions({0: text}, truth, matcher="builtin").records[0].hallucinated]
        for text in (names["plain"], names["contrasted"])
    ]
    assert wrong == [["person"], []]


def test_the_page_on_attention_leaves_what_it_says(read: Reader) -> None:
    names, _ = read("docs/attention.md")
    assert names["effect"].before.shape == (6, 1, 64)
    assert names["attention"].weights.shape == (1, 64)
    assert names["found"].indices.shape == (1, 10)
    blocks = [block for block in find_blocks(PAGES["docs/attention.md"].read_text()) if block.steps]
    assert len(blocks) == 5


def test_the_page_on_diagnosis_finds_what_it_says(read: Reader) -> None:
    found = read("docs/diagnose.md")[0]["found"]
    assert found.verdict == "cannot be told from so few images"  # as the page says
    assert found.images == 4


@pytest.fixture(scope="module")
def method_page(read: Reader) -> dict[str, Any]:
    """What the page on methods leaves behind; the method it registers is taken out again."""
    names, _ = read("docs/add-a-method.md")
    assert "blur" not in METHODS
    return names


def write_by_hand(names: dict[str, Any], new: int) -> list[int]:
    """Greedy search under (1 + alpha) f - alpha n over the plausible tokens, both prompts read anew for every token."""
    model, inputs = names["model"], dict(names["inputs"])
    side = inputs["pixel_values"].shape[-1]
    small = avg_pool2d(inputs["pixel_values"], side // 8)
    blurred = interpolate(small, size=(side, side), mode="bilinear")
    written: list[int] = []
    for _ in range(new):
        more = torch.tensor([written], dtype=torch.long)
        longer = {key: torch.cat([inputs[key], like], dim=1) for key, like in
                  (("input_ids", more), ("attention_mask", torch.ones_like(more)))}  # fmt: skip
        with torch.no_grad():
            full: Tensor = model(**inputs | longer).logits[0, -1]
            negative: Tensor = model(**inputs | longer | {"pixel_values": blurred}).logits[0, -1]
        mixed = 2.0 * full - 1.0 * negative
        mixed[full < full.max() + math.log(0.1)] = -math.inf
        written.append(int(mixed.argmax()))
        if written[-1] == model.generation_config.eos_token_id:
            break
    return written


def test_the_methods_example_is_its_formula(method_page: dict[str, Any]) -> None:
    prompt = method_page["inputs"]["input_ids"].shape[1]
    expected = write_by_hand(method_page, 24)
    assert method_page["fused"][0, prompt:].tolist() == expected
    assert method_page["stock"][0, prompt:].tolist() == expected


def test_the_methods_example_blurs(method_page: dict[str, Any]) -> None:
    blur = method_page["blur"]
    columns = blur.full.image_mask
    assert torch.equal(blur.full.inputs_embeds[~columns], blur.negative.inputs_embeds[~columns])
    assert not torch.allclose(blur.full.inputs_embeds[columns], blur.negative.inputs_embeds[columns], atol=0.1)


def test_the_rules_example_fades_and_keeps_its_word(method_page: dict[str, Any]) -> None:
    rule = method_page["FadingRule"](alpha=2.0, beta=0.1, half_life=8.0)
    full, negative = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(rule(full, negative, 0), ContrastRule(2.0, 0.1)(full, negative, 0))
    torch.testing.assert_close(rule(full, negative, 16), ContrastRule(0.5, 0.1)(full, negative, 0))  # two half-lives
    needed = rule.needed(full, 3)
    decided = ~needed.any(dim=-1)
    assert decided.any() and not decided.all() and not needed.all(dim=-1).any()
    expected = rule(full, negative, 3)
    assert torch.equal(rule(full, torch.where(needed, negative, -1e30 * negative), 3), expected)
    assert torch.equal(rule(full[decided], None, 3), expected[decided])
