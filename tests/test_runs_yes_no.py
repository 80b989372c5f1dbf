"""P(yes) of the embedded model, beside stock transformers and DAMRO's own processor for stock generate."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from damro import DAMROProcessor
from damro.cli import main
from damro.eval.errors import EvalError
from damro.eval.runs.engine import make_engine
from damro.eval.runs.request import RunRequest
from damro.eval.runs.yes_no import YesNoEngine, word_tokens, yes_shares
from damro.eval.samples import Sample, open_scene
from damro.loading import Loaded, load_model, prepare_inputs

PROMPTS = [f"Is there a {noun} in the image? Please answer this question with one word." for noun in ("cat", "bottle")]
SAMPLES = [Sample(f"s/{n}", f"test_{n // 2:06d}.png", PROMPTS[n % 2], {}) for n in range(6)]
ALPHA, BETA, TOP_K = 0.5, 0.05, 4


@pytest.fixture(scope="module")
def tiny() -> Loaded:
    return load_model("tiny", device="cpu")


def make(loaded: Loaded, method: str) -> YesNoEngine:
    engine = make_engine(RunRequest("pope", "tiny", method, data={"read": "logits"}), loaded, open_scene)
    assert isinstance(engine, YesNoEngine)
    return engine


def by_hand(loaded: Loaded, sample: Sample, contrast: bool) -> float | None:
    """One question by itself: the model's logits, DAMRO's scores of them, and two sums over the vocabulary."""
    inputs = prepare_inputs(loaded.processor, [open_scene(sample.image)], [sample.prompt], loaded.model)
    with torch.no_grad():
        scores = loaded.model(**inputs).logits[:, -1].float()
        if contrast:
            subtract = DAMROProcessor(loaded.model, inputs, alpha=ALPHA, beta=BETA, top_k=TOP_K)
            scores = subtract(inputs["input_ids"], scores)
    weights = scores.double().softmax(dim=-1)[0]
    words = {token: loaded.processor.tokenizer.decode([token]).strip().lower() for token in range(len(weights))}
    yes, no = (float(sum(weights[token] for token, word in words.items() if word == name)) for name in ("yes", "no"))
    return yes / (yes + no) if yes + no else None


@pytest.mark.parametrize("method", ["greedy", f"damro:alpha={ALPHA},beta={BETA},top_k={TOP_K}"])
def test_shares_are_those_of_stock_transformers(tiny: Loaded, method: str) -> None:
    answers = make(tiny, method).answer(SAMPLES)
    for sample, answered in zip(SAMPLES, answers, strict=True):
        expected = by_hand(tiny, sample, contrast=method != "greedy")
        assert expected is not None and answered.error is None
        assert answered.p_yes == pytest.approx(expected, abs=1e-5)
        assert answered.text == ("Yes" if expected >= 0.5 else "No")
    assert len({answered.text for answered in answers}) == 2
    assert all((answered.outliers is None) == (method == "greedy") for answered in answers)


def test_a_method_that_leaves_neither_word_has_no_share() -> None:
    scores = torch.log(torch.tensor([[0.2, 0.1, 0.1, 0.6], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.3, 0.7]]))
    shares = yes_shares(scores, torch.tensor([0, 1]), torch.tensor([2]))
    assert shares[0] == pytest.approx(0.75) and shares[1:] == [None, 0.0]


def test_every_spelling_of_a_word() -> None:
    vocabulary = {"\u2581Yes": 5, "Yes": 2, "\u0120yes": 7, "YES": 9, "yesterday": 1, "\u2581No": 3, "not": 4}
    tokenizer: Any = SimpleNamespace(get_vocab=lambda: vocabulary)
    assert (word_tokens(tokenizer, "yes"), word_tokens(tokenizer, "no")) == ([2, 5, 7, 9], [3])
    with pytest.raises(EvalError, match="a model that has a token for 'maybe'"):
        word_tokens(tokenizer, "maybe")


def test_an_image_that_does_not_open_fails_alone(tiny: Loaded) -> None:
    engine = make(tiny, "greedy")

    def open_image(name: str) -> Any:
        if name == SAMPLES[2].image:
            raise EvalError("broken")
        return open_scene(name)

    whole, engine.open_image = engine.answer(SAMPLES), open_image
    found = engine.answer(SAMPLES)
    assert [one.error for one in found] == [None, None, "broken", "broken", None, None]
    assert [found[n].p_yes for n in (0, 5)] == [pytest.approx(whole[n].p_yes) for n in (0, 5)]


def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "pope", "--read", "logits", "--scenes", "12", "--split", "random", "--device", "cpu", "--json"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    scores = json.loads(capsys.readouterr().out)["methods"]["greedy"]["scores"]["tiny/random"]
    assert scores["rule"] == "logits" and 0.5 < scores["auc"] <= 1 and scores["best_accuracy"] >= scores["accuracy"]
    records = [json.loads(line) for line in (tmp_path / "greedy" / "records.jsonl").read_text().splitlines()]
    assert all(0 <= one["p_yes"] <= 1 and math.isfinite(one["p_yes"]) for one in records)
    run = json.loads((tmp_path / "greedy" / "run.json").read_text())
    assert (run["request"]["data"]["read"], run["resolved"]["data"]["read"]) == ("logits", "logits")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "sample"], "--read logits must come with methods without a temperature, got 'sample'"),
        (["--max-new-tokens", "3"], "--max-new-tokens must be left out with --read logits, got 3"),
    ],
)
def test_what_has_no_meaning_without_an_answer(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "pope", "--read", "logits", *options, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
