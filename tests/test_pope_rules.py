"""eval/pope/rules.py: what an answer is read as, rule by rule."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from damro.eval.errors import EvalError
from damro.eval.mme.scoring import parse_answer as read_mme
from damro.eval.pope import parse_answer
from damro.eval.pope.rules import _BOTH, RULES, read_neutrally
from damro.eval.records import read_records

# Worked by hand from the wording of each rule:          pope   opera  lmms       vlmeval
TABLE = {
    "Yes": ("yes", "yes", "yes", "yes"),
    "No": ("no", "no", "no", "no"),
    " yes \n": ("yes", "yes", "yes", "yes"),
    "NO": ("yes", "no", "no", "no"),  # "NO" is only in OPERA's list
    "No.": ("no", "no", "unknown", "no"),
    "No, there is none.": ("no", "no", "unknown", "no"),
    "No!": ("yes", "yes", "unknown", "no"),  # "No!" is no word of the lists
    "No\n": ("yes", "yes", "no", "no"),  # nor is "No\n": only single spaces split
    "Yes. There is no dog.": ("yes", "no", "unknown", "unknown"),  # POPE stops at the first full stop
    "There isn't a dog": ("yes", "no", "unknown", "unknown"),
    "There is not a dog": ("no", "no", "unknown", "unknown"),
    "yes,no": ("yes", "yes", "unknown", "unknown"),  # one word "yesno" after commas; two words for VLMEvalKit
    "yes or no": ("no", "no", "unknown", "unknown"),
    "It is possible": ("yes", "yes", "unknown", "unknown"),
    "": ("yes", "yes", "unknown", "unknown"),
    "**Yes**": ("yes", "yes", "unknown", "unknown"),
}


@pytest.mark.parametrize("text", TABLE)
def test_rules_by_hand(text):
    assert tuple(parse_answer(text, rule) for rule in ("pope", "opera", "lmms", "vlmeval")) == TABLE[text]


@pytest.mark.parametrize(
    ("text", "gold", "verdict"),
    [
        ("Yes", "yes", "yes"),
        ("Yes", "no", "yes"),
        ("No", "yes", "no"),
        ("No", "no", "no"),
        ("a snowboard", "yes", "no"),  # "yes" does not stand there: the model missed it
        ("a cat", "no", "yes"),  # "no" does not stand there: the model made it up
        ("a snowboard", "no", "no"),  # s-no-wboard
        ("Yes, I know", "no", "no"),  # k-no-w
        ("Yes, I know", "YES", "yes"),
    ],
)
def test_vcd_looks_for_the_label_as_a_substring(text, gold, verdict):
    assert parse_answer(text, "vcd", gold=gold) == verdict


def test_vlmeval_punctuation():
    # "yes,there": no comma beside a space, so it becomes one. "yes,there is, or": one does, so all vanish.
    assert parse_answer("yes,there is", "vlmeval") == "yes"
    assert parse_answer("yes,there is, or", "vlmeval") == "unknown"
    # A comma inside a number makes every mark vanish.
    assert parse_answer("yes-man 1,000", "vlmeval") == "unknown"
    # 32 full stops go, the 33rd stays on its word.
    assert parse_answer("a. " * 31 + "yes.", "vlmeval") == "yes"
    assert parse_answer("a. " * 32 + "yes.", "vlmeval") == "unknown"
    assert parse_answer("yes.5", "vlmeval") == "unknown"


def test_unknown_rule_names_the_known_ones():
    with pytest.raises(EvalError, match="rule must be one of pope, opera, vcd, lmms, vlmeval, got 'llava'"):
        parse_answer("Yes", "llava")


def test_vcd_needs_the_label_and_labels_are_checked():
    with pytest.raises(EvalError, match="rule 'vcd' depends on the label"):
        parse_answer("Yes", "vcd")
    with pytest.raises(EvalError, match="label must be yes or no, got 'maybe'"):
        parse_answer("Yes", "pope", gold="maybe")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("YES!", "yes"),
        ("**Yes**", "yes"),
        ("Answer: yes", "yes"),
        ("Yes, there is no doubt", "yes"),
        ("There is a snowboard in the image.", "yes"),
        ("It does.", "yes"),
        ("No", "no"),
        ("no, there is not", "no"),
        ("The answer is no.", "no"),
        ("There isn\u2019t one", "no"),
        ("I cannot see a dog", "no"),
        ("None", "no"),
        ("No, I am not sure", "no"),
        ("", "unknown"),
        ("...", "unknown"),
        ("a snowboard", "unknown"),
        ("yes/no", "unknown"),
        ("No and yes", "unknown"),
        ("I'm not sure.", "unknown"),
        ("It cannot be determined", "unknown"),
        ("I don't know", "unknown"),
        ("There might be one, yes", "unknown"),
        ("I know this place", "unknown"),
        ("It is a cat", "unknown"),
        ("\u662f", "unknown"),
    ],
)
def test_neutral_reader(text, verdict):
    assert read_neutrally(text) == verdict


# The neutral reader's first look as it was: any gap may be parted in two, which takes quadratic time.
BOTH_ONCE = re.compile(r"\byes\s*(?:/|,?\s*(?:and|or)\b)\s*no\b|\bno\s*(?:/|,?\s*(?:and|or)\b)\s*yes\b")
PIECES = st.sampled_from(["yes", "no", "and", "or", "/", ",", " ", "\n", "\u00a0", "x", "."])


@given(st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=20))
def test_yes_or_no_is_found_where_it_was(text):
    assert bool(_BOTH.search(text)) == bool(BOTH_ONCE.search(text))


@pytest.mark.parametrize("name", ["answers_llava-v1.5-13b_adversarial", "answers_llava-v1.5-13b_random"])
def test_recorded_answers_are_read_as_they_were(name):
    texts = [record.fields["answer"] for record in read_records(Path(__file__).parent / f"data/pope/{name}.jsonl.gz")]
    assert len(texts) > 100
    assert all(bool(_BOTH.search(text.lower())) == bool(BOTH_ONCE.search(text.lower())) for text in texts)
    assert {read_neutrally(text) for text in texts} == {"yes", "no"}


@pytest.mark.parametrize("start", ["", "yes", "no", "yes,", "it is "])
@pytest.mark.parametrize("filling", ["\n", " ", "yes ", "a word ", ",", "a'", "a.b,"])
def test_endless_answers_are_read(start, filling):
    text = start + filling * 200_000  # hours if a reader were quadratic
    verdicts = {parse_answer(text, rule, gold="yes") for rule in RULES} | {read_neutrally(text), read_mme(text)}
    assert verdicts <= {"yes", "no", "unknown", "other"}
