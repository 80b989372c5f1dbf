"""eval/pope/scoring.py and eval/pope/questions.py: reading files, joining and scoring yes/no answers."""

import gzip
import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damro.eval.errors import AlignmentError, DataFormatError, EvalError
from damro.eval.pope import (
    POPE_SPLITS,
    RULES,
    Answer,
    Question,
    align,
    judge,
    load_answers,
    load_questions,
    parse_answer,
    score,
    score_pairs,
)
from damro.eval.resources import pope_questions_path

RECORDED = Path(__file__).parent / "data" / "pope"

# The same cases every time, and no time limits: the machines that run the tests are slow and shared.
steady = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def question(number, noun, label="yes", image="a.jpg"):
    return Question(str(number), image, f"Is there a {noun} in the image?", label)


def answer(number, text, image=None, asked=None):
    return Answer(None if number is None else str(number), image, asked, text)


def test_answers_that_a_rule_reads_otherwise_than_a_person_are_counted():
    texts = ["NO", "**No**", "No!", "No", "Yes", "", "a snowboard"]
    pairs = [(question(number, "cat", "no"), text) for number, text in enumerate(texts)]
    found = {rule: score_pairs(pairs, rule) for rule in RULES}
    assert {result.unparsed for result in found.values()} == {2}
    # Of the five that say something: POPE's script takes the first three for a yes, OPERA's all of them but "NO";
    # lmms-eval knows the bare words alone, in any case; VLMEvalKit does not know an asterisk.
    assert {rule: result.misread for rule, result in found.items()} == {
        **{"pope": 3, "opera": 2, "vcd": 0},
        **{"lmms": 2, "vlmeval": 1},
    }


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "file", "counts"),
    [
        ("coco/random_2910", "random", (1182, 31, 1379, 318)),
        ("coco/adversarial", "adversarial", (1182, 117, 1383, 318)),
    ],
)
def test_recorded_answers(split, file, counts):
    """The counts that LLaVA's own script gives for LLaVA-1.5-13B's published answers."""
    result = score(load_questions(split), load_answers(RECORDED / f"answers_llava-v1.5-13b_{file}.jsonl.gz"))
    tp, fp, tn, fn = counts
    assert (result.tp, result.fp, result.tn, result.fn) == counts
    assert (result.n, result.unparsed, result.misread, result.rule) == (sum(counts), 0, 0, "pope")
    assert result.accuracy == (tp + tn) / sum(counts)
    assert result.f1 == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12)
    assert result.yes_ratio == (tp + fp) / sum(counts)


def test_score_by_hand():
    asked = [question(1, "cat"), question(2, "dog", "no"), question(3, "bus"), question(4, "cup", "no")]
    result = score(asked, [answer(1, "Yes"), answer(2, "Yes, a dog."), answer(3, "No"), answer(4, "no")])
    # tp 1 (cat), fp 1 (dog), fn 1 (bus), tn 1 (cup)
    assert result.to_dict() == {
        "tp": 1,
        "fp": 1,
        "tn": 1,
        "fn": 1,
        "unparsed": 0,
        "misread": 0,
        "accuracy": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "f1": 0.5,
        "yes_ratio": 0.5,
        "n": 4,
        "rule": "pope",
    }
    assert (
        list(result.to_dict()) == "tp fp tn fn unparsed misread accuracy precision recall f1 yes_ratio n rule".split()
    )


def test_unknown_answers_are_counted_as_the_source_of_the_rule_does():
    asked = [question(1, "cat"), question(2, "dog", "no"), question(3, "bus"), question(4, "cup", "no")]
    pairs = list(zip(asked, ["Yes", "Perhaps", "Perhaps", "Yes"], strict=True))
    vlmeval, lmms, pope = (score_pairs(pairs, rule) for rule in ("vlmeval", "lmms", "pope"))
    # VLMEvalKit: y_pred = 1 only for "Yes". tp 1, fp 1 (cup), fn 1 (bus); dog is wrong, but no false positive.
    assert (vlmeval.tp, vlmeval.fp, vlmeval.tn, vlmeval.fn, vlmeval.n) == (1, 1, 0, 1, 4)
    assert (vlmeval.accuracy, vlmeval.precision, vlmeval.recall) == (0.25, 0.5, 0.5)
    # lmms-eval: fn only for "no". tp 1, fp 1; bus and dog are wrong and in no denominator.
    assert (lmms.tp, lmms.fp, lmms.tn, lmms.fn, lmms.n) == (1, 1, 0, 0, 4)
    assert (lmms.accuracy, lmms.precision, lmms.recall) == (0.25, 0.5, 1.0)
    # POPE takes "Perhaps" for a yes; the neutral reader does not.
    assert (pope.tp, pope.fp, pope.tn, pope.fn, pope.unparsed) == (2, 2, 0, 0, 2)
    assert vlmeval.unparsed == lmms.unparsed == 2


def test_zero_denominators_are_none():
    asked = [question(1, "cat"), question(2, "dog", "no")]
    nothing = score(asked, [answer(1, "No"), answer(2, "No")])
    assert (nothing.precision, nothing.recall, nothing.f1, nothing.accuracy) == (None, 0.0, None, 0.5)
    only_no = score(asked[1:], [answer(2, "Yes")])
    assert (only_no.precision, only_no.recall, only_no.f1, only_no.yes_ratio) == (0.0, None, None, 1.0)
    all_wrong = score(asked, [answer(1, "No"), answer(2, "Yes")])
    assert (all_wrong.precision, all_wrong.recall, all_wrong.f1) == (0.0, 0.0, None)


@steady
@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.text(alphabet="yesno.,' !NY", max_size=8))), st.data())
def test_every_answer_is_one_outcome_and_accuracy_follows(items, data):
    rule = data.draw(st.sampled_from(RULES))
    pairs = [(question(number, "cat", label), text) for number, (label, text) in enumerate(items)]
    if not pairs:
        with pytest.raises(EvalError, match="at least one question"):
            score_pairs(pairs, rule)
        return
    result = score_pairs(pairs, rule)
    unread = sum(judge(*pair, rule) == "unread" for pair in pairs)
    assert result.tp + result.fp + result.tn + result.fn + unread == result.n == len(items)
    assert rule in ("lmms", "vlmeval") or unread == 0
    right = sum(parse_answer(text, rule, asked.label) == asked.label for asked, text in pairs)
    assert result.accuracy == right / len(items)


def test_empty_input_raises():
    with pytest.raises(EvalError, match="at least one question"):
        score([], [])


# --- joining ---------------------------------------------------------------------------------------------------------


def test_order_does_not_matter():
    asked = load_questions("coco/popular")
    said = [answer(item.question_id, item.label) for item in asked]
    random.Random(0).shuffle(said)
    assert score(asked, said).accuracy == 1.0
    random.Random(1).shuffle(asked)
    assert score(asked, said).accuracy == 1.0


@pytest.mark.parametrize("split", POPE_SPLITS)
def test_every_shipped_split_joins_by_id_and_by_pair(split):
    asked = load_questions(split)
    labels = [item.label for item in asked]
    assert len(asked) == (2910 if split == "coco/random_2910" else 3000)
    assert labels.count("yes") == 1500 and len({item.image for item in asked}) == 500
    by_id = [answer(item.question_id, item.label) for item in asked]
    by_pair = [
        answer(
            None,
            item.label,
            f"val2014/{item.image}",
            f"<image>\n{item.text} Please answer this question with one word.",
        )
        for item in asked
    ]
    for said in (by_id, by_pair):
        assert [text for _, text in align(asked, said)] == labels


def test_answers_to_another_split_are_refused_although_the_ids_fit():
    asked = load_questions("coco/random")
    said = [answer(item.question_id, "Yes", item.image, item.text) for item in load_questions("coco/popular")]
    with pytest.raises(AlignmentError, match=r"3000 answers to 3000 questions: \d+ missing \(COCO_val2014_0+310196"):
        align(asked, said)


def test_ids_that_count_from_zero_do_not_shift_the_answers():
    asked = load_questions("coco/popular")
    said = [answer(int(item.question_id) - 1, item.label, item.image, item.text) for item in asked]
    assert score(asked, said).accuracy == 1.0


def test_id_that_names_another_image_is_refused_without_a_question_to_join_by():
    asked = [question(1, "cat"), question(2, "cat", image="b.jpg")]
    with pytest.raises(AlignmentError, match=r"got 1 that name others \(id 2\)"):
        align(asked, [answer(1, "Yes", "a.jpg"), answer(2, "Yes", "c.jpg")])


def test_missing_doubled_and_unknown_answers_are_named_and_counted():
    asked = [question(number, "cat", image=f"{number}.jpg") for number in range(10)]
    said = [answer(number, "Yes") for number in range(5)] + [answer(0, "No"), answer(77, "No")]
    with pytest.raises(AlignmentError) as caught:
        align(asked, said)
    assert str(caught.value).startswith(
        "every question must have one answer, got 7 answers to 10 questions: 5 missing (id 5, id 6, id 7, ...); "
        "1 doubled (id 0); 1 unknown (id 77)"
    )


def test_missing_pair_is_named():
    asked = [question(1, "cat"), question(2, "dog")]
    with pytest.raises(AlignmentError, match=r"1 missing \(a.jpg: Is there a dog in the image\?\)"):
        align(asked, [answer(101, "Yes", "a.jpg", asked[0].text)])


def test_nothing_to_join_by():
    with pytest.raises(AlignmentError, match="add 'question_id'"):
        align([question(1, "cat")], [answer(None, "Yes")])
    with pytest.raises(AlignmentError, match="got 0 answers"):
        align([question(1, "cat")], [])


@pytest.mark.parametrize(
    ("ids", "answered", "message"),
    [
        (
            (1, 2),
            (None, None),
            "got 2 answers to 2 questions, where no answer has an id: add 'question_id', or give the",
        ),
        ((1, 2), (11, 12), r"no id of an answer \(11, 12\) is one of a question \(1, 2\): give the answers to these"),
        (
            (1, 1),
            (1, 1),
            r"where 1 ids of questions stand twice \(1\): give the answers 'image' and 'question', or each",
        ),
        ((1, None), (1, 2), "where 1 questions have no 'question_id': add it, or give the answers 'image'"),
    ],
)
def test_why_ids_do_not_join_is_told(ids, answered, message):
    questions = [
        Question(one and str(one), "a.jpg", f"Is there a {noun} in the image?", "yes")
        for one, noun in zip(ids, ("cat", "dog"), strict=True)
    ]
    with pytest.raises(AlignmentError, match=message):
        align(questions, [answer(one, "Yes") for one in answered])


@pytest.mark.parametrize("split", ["coco/adversarial", "coco/random_2910"])
def test_questions_are_no_answers(split):
    path = pope_questions_path(split)
    with pytest.raises(AlignmentError, match=r"what the model said, got (\d+) of \1 that are the question \(COCO_val"):
        score(load_questions(split), load_answers(path))


def test_a_question_left_without_its_answer_is_named():
    records = [{"question_id": n, "image": "a.jpg", "text": question(n, "cat").text} for n in (1, 2)]
    asked = [question(1, "cat"), question(2, "cat")]
    with pytest.raises(AlignmentError, match=r"got 1 of 2 that are the question \(a.jpg: Is there a cat in the image"):
        align(asked, [records[0] | {"answer": "Yes"}, records[1]])
    # A model that repeats its question said so.
    echoed = [records[0] | {"answer": "Yes"}, records[1] | {"answer": asked[1].text}]
    assert [text for _, text in align(asked, echoed)] == ["Yes", asked[1].text]


def test_questions_put_together_from_several_files_join_by_pair():
    asked = [question(1, "cat"), question(1, "dog", "no"), question(2, "cat")]  # ids and one question twice
    said = [answer(1, text, "a.jpg", item.text) for item, text in zip(asked, ("Yes", "No", "No"), strict=True)]
    assert [text for _, text in align(asked, said)] == ["Yes", "No", "No"]
    with pytest.raises(AlignmentError, match=r"1 missing \(a.jpg: Is there a cat in the image\?\)"):
        align(asked, said[:2])


def test_repeated_question_with_two_labels_needs_ids():
    asked = [question(1, "cat", "yes"), question(2, "cat", "no")]
    said = [answer(10 + number, "Yes", "a.jpg", asked[0].text) for number in (0, 1)]
    with pytest.raises(AlignmentError, match="got 1 with two"):
        align(asked, said)
    assert score(asked, [answer(2, "No"), answer(1, "Yes")]).accuracy == 1.0


def test_mended_misprint_still_joins():
    asked = Question("1", "a.jpg", "Is there an oven in the imange?", "yes")
    assert align([asked], [answer(900, "Yes", "a.jpg", "Is there an oven in the image?")])[0][1] == "Yes"


# --- files -----------------------------------------------------------------------------------------------------------

GOOD = {"question_id": 1, "image": "a.jpg", "text": "Is there a cat in the image?", "label": "Yes"}


def write(path, *records):
    text = "\n".join(map(json.dumps, records))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("key", ["answer", "text", "output", "response"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz"])
def test_answer_keys_and_file_kinds(tmp_path, key, name):
    path = write(tmp_path / name, {"question_id": "1", "prompt": GOOD["text"], key: "No"})
    assert load_answers(path) == [Answer("1", None, GOOD["text"], "No")]


def test_text_is_the_question_where_the_answer_stands_elsewhere(tmp_path):
    path = write(tmp_path / "a.jsonl", {**GOOD, "response": "No"})
    assert load_answers(path) == [Answer("1", "a.jpg", GOOD["text"], "No", label=GOOD["label"])]
    assert score(load_questions(path), load_answers(path)).fn == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, "line 2: label must be yes or no, got 'maybe'"),
        ({"label": 1}, "line 2: label must be yes or no, got 1"),
        ({"label": ["yes"]}, r"line 2: label must be yes or no, got \['yes'\]"),
        ({"image": None}, "line 2: a question must have 'image' and 'text'"),
        ({"text": 7}, "line 2: 'text' must be text, got int 7"),
        ({"question_id": 1.5}, "line 2: question_id must be a whole number or text, got 1.5"),
        ({"question_id": True}, "line 2: question_id must be a whole number or text, got True"),
    ],
)
def test_malformed_question_names_file_and_line(tmp_path, change, message):
    path = write(tmp_path / "q.jsonl", GOOD, {**GOOD, **change})
    with pytest.raises(DataFormatError, match=f"q.jsonl, {message}"):
        load_questions(path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question_id": 1}, r"the answer must be text under .*, got keys \['question_id'\]"),
        ({"answer": None}, "the answer must be text"),
        ({"answer": ["Yes"]}, r"'answer' must be text, got list \['Yes'\]"),
        ({"answer": "yes", "response": "No"}, "must have one answer, got 'answer' and 'response'"),
    ],
)
def test_malformed_answer_names_file_and_line(tmp_path, record, message):
    path = write(tmp_path / "a.jsonl", {"answer": "Yes"}, record)
    with pytest.raises(DataFormatError, match=f"a.jsonl, line 2: {message}"):
        load_answers(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@steady
@given(
    st.lists(
        st.dictionaries(st.sampled_from([*GOOD, "answer", "output", "question"]), json_values), min_size=1, max_size=3
    )
)
def test_malformed_records_end_in_an_error_of_ours(records):
    try:
        result = score(records, records)
    except EvalError as error:
        assert str(error)
    else:
        assert result.n == len(records)
