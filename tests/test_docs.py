"""The documentation: its examples run and do what they say, its command lines exist, its tables are true."""

import math
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from damro import tiny
from damro.cli import build_parser
from damro.decoding.families import FAMILIES
from damro.decoding.rules import ContrastRule
from damro.eval.benchmark import BENCHMARKS
from damro.eval.pope.rules import RULES, parse_answer
from damro.loading import load_model, prepare_inputs
from damro.methods import METHODS
from damro.methods.presets import preset
from damro.parameters import parameters

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
NEEDS_A_DOWNLOAD = "## The same on LLaVA-1.5-7B"


def blocks(text: str, language: str) -> list[str]:
    """The blocks of a language, files that they include in their place."""
    fence = {"python": r"(?:python|\ \{ \.py \.run[^\n]*\})"}.get(language, language)
    found = re.findall(rf"^```{fence}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r'--8<-- "(.+?)"', lambda match: (DOCS.parent / match[1]).read_text(), block) for block in found]


def rows(page: str, header: str) -> list[list[str]]:
    """The cells of the table that has this first cell."""
    lines = (DOCS / page).read_text().split(f"| {header} |")[1].splitlines()[2:]
    table = "\n".join(lines).partition("\n\n")[0]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table.splitlines()]


def run(page: str, until: str | None = None) -> dict[str, Any]:
    """Runs the Python of a page from top to bottom, as a reader would."""
    text = (DOCS / page).read_text()
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(blocks(text.partition(until)[0] if until else text, "python")):
        exec(compile(code, f"{page}, block {number}", "exec"), names)
    return names


def test_the_tutorial_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("tutorial.md", until=NEEDS_A_DOWNLOAD)
    assert "['cat', 'couch', 'tv', 'vase']" in capsys.readouterr().out  # what the text says scene 0 shows
    assert names["plain"] and names["contrasted"]
    assert names["result"].n == 8  # what the text says of the questions


def test_the_page_on_attention_runs() -> None:
    model, processor = load_model("tiny")
    inputs = prepare_inputs(processor, [tiny.scene("test", 0).image], ["Describe this image."], model)
    text = (DOCS / "attention.md").read_text()
    names: dict[str, Any] = {"model": model, "inputs": inputs}
    ran = [code for code in blocks(text, "python") if "dinov2" not in code]  # needs the extra; its own tests run it
    for code in ran:
        # The embedded model has 64 patches, and an answer of 4 tokens tells as much as one of 256.
        exec(code.replace("192", "32").replace("=256", "=4"), names)
    assert len(ran) == 4
    assert names["attention"].weights.shape == (1, 64)
    assert names["found"].indices.shape == (1, 10)


def test_the_page_on_diagnosis_runs() -> None:
    found = run("diagnose.md")["found"]
    assert found.verdict == "cannot be told from so few images"  # as the page says
    assert found.images == 4


@pytest.fixture(scope="module")
def method_page() -> Iterator[dict[str, Any]]:
    """What the page on methods leaves behind; the method it registers is taken out again."""
    yield run("add-a-method.md")
    METHODS.remove("blur")


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


@EVERY_PAGE
def test_python_blocks_are_python(page: Path) -> None:
    for number, code in enumerate(blocks(page.read_text(), "python")):
        compile(code, f"{page.name}, block {number}", "exec")


@EVERY_PAGE
def test_command_lines_are_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    for line in "".join(blocks(page.read_text(), "sh")).replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["damro"]:
            try:
                parser.parse_args(words[1:])
            except SystemExit:
                pytest.fail(f"{line}: {capsys.readouterr().err}")


def test_every_command_is_on_its_page() -> None:
    text = (DOCS / "cli.md").read_text()
    commands = [name for action in build_parser()._actions for name in action.choices or ()]
    assert len(commands) > 5
    assert [name for name in commands if f"damro {name}" not in text] == []


def test_the_tables_name_what_there_is() -> None:
    assert [row[0] for row in rows("add-a-family.md", "`config.model_type`")] == list(FAMILIES)
    tables = runpy.run_path(str(DOCS / "tables.py"))
    for kind, owners in (("methods", METHODS), ("benchmarks", BENCHMARKS)):
        table = tables["on_page_markdown"](f"<!-- table: {kind} -->").splitlines()[2:]
        assert [line.split("|")[1].strip(" `") for line in table] == list(owners)
        for line, owner in zip(table, owners.values(), strict=True):
            assert all(f"`{one.name}=" in line for one in parameters(owner))
    assert "<!-- table: methods -->" in (DOCS / "method.md").read_text()


def test_the_presets_are_those_of_the_code() -> None:
    names = {"LLaVA-1.5": "llava", "LLaVA-NeXT": "llava_next", "InstructBLIP": "instructblip"}
    table = rows("method.md", 'family | alpha | beta | top-k | alpha for `task="chair"`')
    assert len(table) == len(names)
    for name, *cells in table:
        family = names[name]
        assert [float(cell) for cell in cells] == [*preset(family), preset(family, "chair").alpha]


def test_the_answers_are_read_as_the_table_says() -> None:
    table = rows("protocol.md", "answer")
    assert len(table) == 7
    for answer, *verdicts in table:
        assert verdicts == [parse_answer(answer, rule, gold="no") for rule in RULES]
