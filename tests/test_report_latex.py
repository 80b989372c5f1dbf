"""eval/report/latex.py."""

from __future__ import annotations

import re

from test_report_comparison import compare_answers
from test_report_tables import Made, Scoring, run

from damro.eval.report.comparison import compare
from damro.eval.report.latex import to_latex, to_tabular


def test_a_table_has_the_numbers_of_the_others() -> None:
    text = to_latex(compare_answers())
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == r"\begin{table}" and lines[-1] == r"\end{table}"
    assert lines.index(r"\toprule") < lines.index(r"\midrule") < lines.index(r"\bottomrule")
    assert r"\begin{tabular}{lrrrrr}" in text
    assert r"method & accuracy \% & precision \% & recall \% & F1 \% & yes \% \\" in lines
    (greedy,) = [line for line in lines if line.startswith("greedy")]
    assert greedy.startswith("greedy & 75.0 & ") and "^*" not in greedy
    (damro,) = [line for line in lines if line.startswith("damro")]
    assert re.match(r"damro & 83\.3(\$\^\*\$)? & ", damro)
    ends = lines[lines.index(damro) + 1]
    assert re.match(r"& \{\\scriptsize \[\d+\.\d, \d+\.\d\]\} & ", ends)
    assert all(line.count("&") == 5 for line in lines if line.endswith(r"\\"))
    assert "difference to greedy" in text


def test_names_are_text() -> None:
    odd = r"a_b & 5 % $x$ {\bf #~^}"
    text = to_latex(compare(Made(title=odd), odd, {odd: run(1, 0), "two": run(1, 1)}, Scoring()))
    shown = r"a\_b \& 5 \% \$x\$ \{\textbackslash{}bf \#\textasciitilde{}\textasciicircum{}\}"
    assert text.count(shown) == 4  # group and model; the method, as baseline and in its line
    assert odd not in text


def test_a_negative_value_has_a_minus() -> None:
    assert r"$-$100.0" in to_latex(compare(Made(), "m", {"one": run(-1)}, Scoring()))


def test_any_table_becomes_one() -> None:
    lines = to_tabular([["method", "top_k"], ["damro", "5"]]).splitlines()
    assert [line.strip() for line in lines] == [
        *(r"\begin{tabular}{lr}", r"\toprule", r"method & top\_k \\", r"\midrule", r"damro & 5 \\", r"\bottomrule"),
        r"\end{tabular}",
    ]
