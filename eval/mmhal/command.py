"""``damro score mmhal``: what a model's answers to MMHal-Bench are worth, by a judge's ratings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.formats.tables import read_table
from damro.eval.groups import Note
from damro.eval.judged.command import add_judge_flags, check_judge_flags, judge_answers
from damro.eval.mmhal.benchmark import find_judgements, of_judge, to_answer
from damro.eval.mmhal.judging import MAX_TOKENS, SCRIPT, ask_about, load_prompt
from damro.eval.mmhal.questions import FILE, MmhalQuestion, load_questions
from damro.eval.mmhal.scoring import MmhalAnswer, check_once, score_groups
from damro.eval.score_command import add_answers_parser, show_groups


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add ``mmhal`` to the ``score`` commands.

    Args:
        subparsers: What ``add_subparsers`` of the ``score`` parser returned.

    Returns:
        The new parser; its namespace has `run` as ``run``.
    """
    parser = add_answers_parser(
        subparsers,
        "mmhal",
        "score answers to MMHal-Bench by a judge's ratings",
        f"Score answers in the form of {FILE}, with the text under 'model_answer', or the records of damro run mmhal. "
        "--judgements also takes the file that the official script writes, and answers may have their 'gpt4_review'.",
        run,
    )
    parser.add_argument(
        "--questions", metavar="FILE", help=f"{FILE}, for answers of RLHF-V's scripts (question_id, prompt, text)"
    )
    add_judge_flags(parser, SCRIPT)
    return parser


def run(args: argparse.Namespace) -> int:
    """Have the answers judged where that is asked for, score them and print the result.

    Args:
        args: What the parser of `add_parser` made of the command line.

    Returns:
        The exit code, 0.

    Raises:
        EvalError: A file is malformed, a question is answered twice, an answer has no judgement, or the judge cannot
            be asked.
    """
    check_judge_flags(args)
    answers, notes = load_answers(args.answers, args.questions)
    if args.judge is None:
        found = find_judgements(answers, [] if args.judgements is None else [args.judgements])
    else:
        prompt = load_prompt(args.judge_prompt)
        asked = ask_about(answers, prompt)
        found = of_judge(answers, judge_answers(args, asked, prompt, max_tokens=MAX_TOKENS))
    if found is None:
        raise EvalError(
            "answers to MMHal-Bench must be judged to be scored, got no judgements: give --judgements with a file of "
            "them, and --judge NAME and --endpoint URL to have them made"
        )
    ratings, told = found
    show_groups("MMHal-Bench", score_groups(answers, ratings, [*told, *notes]), as_json=args.json)
    return 0


def load_answers(paths: Sequence[str], questions: str | None) -> tuple[list[MmhalAnswer], list[Note]]:
    """Read files of answers; samples of a run that failed are left out, and told.

    Args:
        paths: The files.
        questions: The official file, for answers that hold no gold answer.

    Raises:
        DataFormatError: A file is malformed; names the file and the line.
        AlignmentError: A question is answered twice, or an answer is of none.
        EvalError: There are no answers, or they need the file of questions.
    """
    asked = None if questions is None else [one for _, one in load_questions(questions)]
    answers, failed = [], 0
    for path in paths:
        for place, (where, fields) in enumerate(read_table(path), start=1):
            if "error" in fields:
                failed += 1
            elif "gt_answer" in fields:
                answers.append(to_answer(fields, where, str(place)))
            else:
                answers.append(_join(fields, where, asked))
    check_once(answers)
    if not any(one.text for one in answers):
        raise EvalError(
            f"answers must hold at least one text, got {len(answers)} empty ones: fill 'model_answer' of {FILE} in"
        )
    return answers, [Note("failed", failed, "samples of the run have no answer", doubtful=True)] if failed else []


def _join(fields: Mapping[str, Any], where: str, asked: Sequence[MmhalQuestion] | None) -> MmhalAnswer:
    """An answer of RLHF-V's scripts, whose questions are numbered from 0 in the order of the official file."""
    number, text = fields.get("question_id"), fields.get("text")
    if isinstance(number, bool) or not isinstance(number, int) or not isinstance(text, str):
        raise DataFormatError(
            f"{where}: an answer to MMHal-Bench must have 'gt_answer' and 'model_answer', or 'question_id', 'prompt' "
            f"and 'text' as RLHF-V's scripts write them, got keys {ascii(sorted(map(str, fields)))[:120]}"
        )
    if asked is None:
        raise EvalError(f"{where}: an answer without the question's gold answer needs --questions: give {FILE}")
    if not 0 <= number < len(asked) or fields.get("prompt", asked[number].question) != asked[number].question:
        raise AlignmentError(
            f"{where}: question_id must be the place of its question in {FILE}, from 0, got {number} with prompt "
            f"{ascii(fields.get('prompt'))[:80]}: give the file of questions that was asked"
        )
    return MmhalAnswer(str(number + 1), asked[number], text.replace("Assistant:", "").strip())
