"""The tables of ``damro bench``."""

from __future__ import annotations

from typing import Any

_MIB = 2**20


def headline(report: dict[str, Any]) -> str:
    """What was measured, and where."""
    return (
        f"{report['config']}, {report['dtype']}, {report['device']}: {report['hardware']}, "
        f"{report['threads']} threads, load {report['load']}, torch {report['torch']}, "
        f"transformers {report['transformers']}, {report['date']}; medians of {report['repeats']}"
    )


def table_head(cell: dict[str, Any]) -> str:
    """The lines above the rows of a cell."""
    return (
        f"\n{cell['image_tokens']} image tokens, batch {cell['batch']}, {cell['new_tokens']} new tokens\n"
        f"{'':16}{'tokens/s':>10}{'call s':>9}{'ratio':>7}{'step ms':>9}{'ratio':>7}{'vision':>8}{'peak MiB':>10}"
    )


def table_row(name: str, speed: dict[str, Any]) -> str:
    """A method's figures."""
    peak = "" if speed["peak_bytes"] is None else f"{speed['peak_bytes'] / _MIB:.0f}"
    step_ratio = "" if speed["step_ratio"] is None else f"{speed['step_ratio']:.2f}"
    return (
        f"{name:16}{speed['tokens_per_second']:>10.1f}{speed['whole']:>9.3f}{speed['whole_ratio']:>7.2f}"
        f"{speed['step'] * 1000:>9.2f}{step_ratio:>7}{speed['vision_passes']:>8}{peak:>10}"
    )


def analysis_table(analysis: dict[str, Any]) -> str:
    """The vision pass by batch size, alone and with what DAMRO needs of it."""
    lines = [
        f"\nanalysis of {analysis['image_tokens']} image tokens",
        f"{'batch':6}{'vision pass s':>15}{'with ranking s':>16}{'ratio':>7}{'once s':>9}",
    ]
    for row in analysis["rows"]:
        once = "" if row["verifying"] is None else f"{row['verifying']:.3f}"
        lines.append(f"{row['batch']:<6}{row['vision']:>15.3f}{row['analysed']:>16.3f}{row['ratio']:>7.2f}{once:>9}")
    lines.append("vision pass: tower and projector; once: looking up which patches become which column, at first use")
    return "\n".join(lines)


def pruning_table(pruning: dict[str, Any]) -> str:
    """Plain decoding and DAMRO by image tokens kept."""
    names = [row["method"] + "-compiled" * row["compiled"] for row in pruning["rows"]]
    wide = max(map(len, names)) + 1
    lines = [
        f"\npruning of {pruning['image_tokens']} image tokens, batch {pruning['batch']}, {pruning['new_tokens']} new "
        "tokens; ratios to plain with all",
        f"{'':{wide}}{'kept':>6}{'first token s':>15}{'ratio':>7}{'of it LM s':>12}{'ratio':>7}"
        f"{'call s':>9}{'ratio':>7}{'KV MiB':>9}{'ratio':>7}{'peak MiB':>10}{'ratio':>7}",
    ]
    for name, row in zip(names, pruning["rows"], strict=True):
        line = f"{name:{wide}}{row['image_tokens']:>6}"
        for of, width in (("prefill", 15), ("language", 12), ("whole", 9)):
            line += f"{row[of]:>{width}.3f}{_ratio(row[of + '_ratio'])}"
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / _MIB:.0f}"
        line += f"{row['kv_bytes'] / _MIB:>9.1f}{_ratio(row['kv_ratio'])}{peak:>10}{_ratio(row['peak_ratio'])}"
        lines.append(line)
    lines.append("first token: from the call, the vision tower included; of it LM: its layers over all prompts")
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return f"{'' if value is None else format(value, '.2f'):>7}"


def tail(report: dict[str, Any]) -> str:
    """Questions a second, and what reading the weights alone would take."""
    lines = [""]
    if "questions" in report:
        single = report["questions"]["damro, one by one"]
        lines.append(f"{report['asked']} questions about one image, questions/s (ratio to damro, one by one)")
        lines += [f"  {name:22}{rate:>8.2f}{rate / single:>7.2f}" for name, rate in report["questions"].items()]
    roof = report["roofline"]
    lines.append(
        f"roofline: {roof['weight_bytes'] / 1e6:.1f} MB of weights a token over "
        f"{roof['bytes_per_second'] / 1e9:.1f} GB/s (copy) = {roof['seconds_per_token'] * 1000:.2f} ms a token"
    )
    return "\n".join(lines)
