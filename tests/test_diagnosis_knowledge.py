"""AUCs by the count of pairs, and their intervals over images."""

from collections.abc import Sequence

import numpy as np
import pytest

from damro.diagnosis.knowledge import compare_pairs, measure_captions, measure_questions
from damro.diagnosis.settings import CONTROLS, PROMPTS
from damro.eval.errors import EvalError
from damro.eval.statistics import bootstrap_statistic


def count_pairs(positive: Sequence[float], negative: Sequence[float]) -> float:
    won = sum((one > other) + 0.5 * (one == other) for one in positive for other in negative)
    return won / (len(positive) * len(negative))


def random_groups(images: int, seed: int) -> tuple[list[list[float]], list[list[float]]]:
    rng = np.random.default_rng(seed)

    def draw() -> list[list[float]]:
        # Halves, so that there are ties; some images have nothing.
        return [(rng.integers(-6, 7, size=rng.integers(0, 4)) / 2).tolist() for _ in range(images)]

    return draw(), draw()


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_pairs_won(seed: int) -> None:
    positive, negative = random_groups(9, seed)
    pairs = compare_pairs(positive, negative)
    expected = count_pairs(sum(positive, []), sum(negative, []))
    assert pairs.auc(np.ones((1, 9)))[0] == pytest.approx(expected)


def test_an_image_that_is_drawn_twice_counts_twice() -> None:
    positive, negative = random_groups(6, 7)
    pairs = compare_pairs(positive, negative)
    drawn = [0, 2, 2, 3, 5, 5]
    weights = np.bincount(drawn, minlength=6)[None]
    again = [positive[image] for image in drawn], [negative[image] for image in drawn]
    expected = count_pairs(sum(again[0], []), sum(again[1], []))
    assert pairs.auc(weights)[0] == pytest.approx(expected)


def test_auc_of_nothing_is_not_defined() -> None:
    pairs = compare_pairs([[], []], [[1.0], [2.0]])
    assert np.isnan(pairs.auc(np.ones((1, 2))))[0]
    assert bootstrap_statistic(pairs.auc, 2) is None


def test_an_interval_of_a_statistic_is_that_of_the_resamples_enumerated() -> None:
    # Two images: drawn twice the first, twice the second, or both, with probabilities 1/4, 1/4, 1/2.
    found = bootstrap_statistic(lambda counts: (counts * [0.0, 2.0]).sum(axis=-1), 2, resamples=4000)
    assert found is not None
    assert (found.estimate, found.low, found.high, found.samples) == (2.0, 0.0, 4.0, 2)
    with pytest.raises(EvalError, match="samples must be at least 1, got 0"):
        bootstrap_statistic(lambda counts: counts.sum(axis=-1), 0)


def scores_of(images: int, high: float) -> list[list[np.ndarray]]:
    """One thing an image: DAMRO's prompt scores it high, the controls by the image's number."""
    return [[np.array([high, *[float(image % 2)] * len(CONTROLS)])] for image in range(images)]


def test_questions_are_compared_by_kind_and_prompt() -> None:
    images = 30
    known = measure_questions(
        {
            "present": scores_of(images, 1.0),
            "hallucinated": [*scores_of(images - 5, 2.0), *[[] for _ in range(5)]],
            "denied": scores_of(images, 1.0),
        }
    )
    damro, *controls = PROMPTS
    assert known.present[damro] is not None and known.present[damro].estimate == 0.5  # ties
    assert known.hallucinated[damro] is not None and known.hallucinated[damro].estimate == 1.0
    assert known.difference[damro] is not None
    assert (known.difference[damro].estimate, known.difference[damro].low) == (0.5, 0.5)
    assert known.counts == {"present": 30, "hallucinated": 25, "denied": 30}
    assert known.hallucinating_images == 25
    assert known.rate is not None and known.rate.estimate == pytest.approx(25 / 55)
    for name in controls:
        above, own = known.above_controls[name], known.hallucinated[name]
        assert above is not None and own is not None
        assert above.estimate == pytest.approx(1.0 - own.estimate)


def test_captions_are_compared_with_chance() -> None:
    known = measure_captions({"true": scores_of(20, 0.0), "hallucinated": scores_of(20, -1.0)})
    assert known.hallucinated["damro"] is not None and known.hallucinated["damro"].estimate == 0.0
    assert known.above_chance["damro"] is not None and known.above_chance["damro"].estimate == -0.5
    assert known.above_chance["no-image"] is not None
    assert known.above_chance["no-image"].estimate == pytest.approx(0.0)
    assert known.rate is not None and known.rate.estimate == 0.5


def test_without_hallucinations_there_is_nothing_to_compare() -> None:
    known = measure_captions({"true": scores_of(20, 0.0), "hallucinated": [[] for _ in range(20)]})
    assert known.hallucinated["damro"] is None and known.above_controls["no-image"] is None
    assert known.rate is not None and (known.rate.estimate, known.rate.high) == (0.0, 0.0)
