"""The documentation: every command is on its page, and its tables are true. Its blocks: test_docs_blocks.py."""

import runpy
from pathlib import Path

from damro.cli import build_parser
from damro.decoding.families import FAMILIES
from damro.eval.benchmark import BENCHMARKS
from damro.eval.pope.rules import RULES, parse_answer
from damro.methods import METHODS
from damro.methods.presets import preset
from damro.parameters import parameters

DOCS = Path(__file__).parents[1] / "docs"


def rows(page: str, header: str) -> list[list[str]]:
    """The cells of the table that has this first cell."""
    lines = (DOCS / page).read_text().split(f"| {header} |")[1].splitlines()[2:]
    table = "\n".join(lines).partition("\n\n")[0]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table.splitlines()]


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
