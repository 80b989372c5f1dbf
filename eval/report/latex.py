"""Comparisons as tables of LaTeX, with the rules of the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from damro.eval.report.comparison import Comparison, Row
from damro.eval.report.tables import FEWEST, by_group, is_clear, show_value
from damro.eval.report.text import to_line

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def to_latex_text(text: object) -> str:
    r"""Return a text as LaTeX that shows it.

    Example:
        >>> print(to_latex_text("top_k=10, 50 % {a}~\\b"))
        top\_k=10, 50 \% \{a\}\textasciitilde{}\textbackslash{}b
    """
    return re.sub(r"[\\~^&%$#_{}]", lambda match: _SPECIAL[match[0]], to_line(text))


def to_latex(comparison: Comparison) -> str:
    """Return a table a group: a line a method, with 95 % intervals below the values."""
    return "\n".join(_table(comparison, name, rows) for name, rows in by_group(comparison).items())


def _table(comparison: Comparison, group: str, rows: list[Row]) -> str:
    titles = list(dict.fromkeys(to_latex_text(row.measure.title) for row in rows))
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        cells = [_cell(row) for row in rows if row.method == method]
        lines.append(f"    {to_latex_text(method)} & {' & '.join(value for value, _ in cells)} \\\\")
        lines.append(f"    & {' & '.join(ends for _, ends in cells)} \\\\")
    told = f"{comparison.benchmark.upper()} {group}, {comparison.model}: {comparison.compared} samples"
    below = "In brackets: 95\\,\\% bootstrap intervals over images."
    if len(comparison.entries) > 1:
        below += (
            f" $^*$: the interval of the paired difference to {to_latex_text(comparison.baseline.name)} is without "
            f"zero, of at least {FEWEST} images."
        )
    caption = f"  \\caption{{{to_latex_text(told)}. {below}}}"
    table = _tabular(["method", *titles], lines)
    return "\n".join([r"\begin{table}", r"  \centering", caption, table, r"\end{table}"])


def to_tabular(lines: Sequence[Sequence[str]]) -> str:
    """Return a table whose first line is its head."""
    head, *rows = ([to_latex_text(cell) for cell in line] for line in lines)
    return _tabular(head, [f"    {' & '.join(row)} \\\\" for row in rows])


def _tabular(head: Sequence[str], lines: Sequence[str]) -> str:
    """A tabular environment; texts are escaped already."""
    return "\n".join(
        [
            f"  \\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"    \toprule",
            f"    {' & '.join(head)} \\\\",
            r"    \midrule",
            *lines,
            r"    \bottomrule",
            r"  \end{tabular}",
        ]
    )


def _cell(row: Row) -> tuple[str, str]:
    """A value, with a star where its difference is clear, and its interval."""
    shown_so = row.measure.unit, row.measure.digits
    value, _, ends = show_value(row.value, *shown_so).partition(" ")
    star = "$^*$" if row.difference is not None and is_clear(row.difference, *shown_so) else ""
    shown = f"$-${value[1:]}" if value.startswith("-") and value != "-" else value
    return shown + star, f"{{\\scriptsize {ends}}}" if ends else ""
