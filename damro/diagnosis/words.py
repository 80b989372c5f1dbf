"""A diagnosis in sentences: every number with its interval, and what it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from damro.diagnosis.diagnose import Diagnosis
from damro.diagnosis.following import FollowingFindings
from damro.diagnosis.headroom import HeadRoom
from damro.diagnosis.knowledge import METHOD, CaptionKnowledge, QuestionKnowledge
from damro.diagnosis.outliers import OutlierFindings
from damro.diagnosis.settings import CONTROLS
from damro.diagnosis.verdict import FEWEST, LIKELY, NO_REASON, Claim
from damro.eval.statistics import Interval
from damro.methods.presets import has_preset
from damro.vision.sources import SOURCE_NAMES

TASKS = {"questions": "yes/no questions", "captions": "captions"}
_MISSING = {
    "background": "Where flagged patches lie is",
    "following": "Where the language model looks is",
    "questions": "Yes/no questions are",
    "captions": "Captions are",
}
_SHOWN = 3


def percent(value: Interval | None) -> str:
    """A share with its interval.

    Example:
        >>> percent(Interval(0.817, 0.788, 0.845, 0.95, 2000)), percent(None)
        ('81.7 % (78.8 to 84.5)', 'not defined')
    """
    return _show(value, 100, "z.1f", " %")


def points(value: Interval | None) -> str:
    """A difference of shares with its interval.

    Example:
        >>> points(Interval(-0.082, -0.102, -0.062, 0.95, 2000))
        '-8.2 points (-10.2 to -6.2)'
    """
    return _show(value, 100, "+z.1f", " points")


def number(value: Interval | None, *, signed: bool = False) -> str:
    """A number with its interval.

    Example:
        >>> number(Interval(0.913, 0.888, 0.934, 0.95, 2000)), number(Interval(0.5, float("-inf"), 1, 0.95, 1))
        ('0.913 (0.888 to 0.934)', '0.500')
    """
    return _show(value, 1, "+z.3f" if signed else "z.3f", "")


def _share(value: float) -> str:
    """A share without an interval."""
    return f"{100 * value:.1f} %"


def _show(value: Interval | None, factor: int, form: str, unit: str) -> str:
    if value is None:
        return "not defined"
    shown, *ends = [f"{factor * one:{form}}" for one in (value.estimate, *(value.ends or ()))]
    return f"{shown}{unit}" + (f" ({ends[0]} to {ends[1]})" if ends else "")


def summary(found: Diagnosis) -> list[str]:
    """The verdict, and what it is of each task."""
    lines = [f"DAMRO on this model: {found.verdict}."]
    words = {True: "it may help", False: "no reason to expect it", None: "cannot be told"}
    for task, may in found.judgement.tasks.items():
        lines.append(f"{TASKS[task].capitalize()}: {words[may]}{_because(found.judgement.claims[task])}.")
    if found.verdict not in (LIKELY, NO_REASON):
        lines.append(
            f"Intervals are too wide, or rest on fewer than {FEWEST} images: look at more of them (--limit), best at "
            "such as the model hallucinates about."
        )
    return lines


def _because(claims: Sequence[Claim]) -> str:
    """The first claims that fail; if none does, how many are open."""
    failing = [claim.text for claim in claims if claim.holds is False]
    if failing:
        return f", since not above what would matter: {'; '.join(failing)}"
    still = sum(claim.holds is None for claim in claims)
    return f", {still} of {len(claims)} claims are open" if still else ""


def caveats(found: Diagnosis) -> list[str]:
    """What a reader must know: what is not the paper's, what is missing, and why."""
    lines = []
    if found.outliers.source == "received":
        lines.append(
            "This vision tower has no [CLS]: patches are ranked by the attention that they receive, which is not the "
            "paper's method."
        )
    if not has_preset(found.family):
        told = f"--top-k {found.settings.top_k}" if found.settings.top_k else f"{found.outliers.top_k}, as for LLaVA"
        lines.append(f"The paper has no alpha, beta and top-k for {found.family}: patches flagged are {told}.")
    if found.unclear:
        lines.append(
            f"{found.unclear} answers to questions begin with neither a yes nor a no, and POPE's rule takes such a "
            "token for a yes: the first token is then not the answer, and numbers of questions are to be doubted."
        )
    lines += [f"{_MISSING[part]} not told: {reason}." for part, reason in found.missing.items()]
    if found.left_out:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(found.left_out.items())[:_SHOWN])
        lines.append(f"Left out are {len(found.left_out)} images ({named}{'; ...' * (len(found.left_out) > _SHOWN)}).")
    return lines


def outlier_sentences(found: OutlierFindings) -> list[str]:
    """Attention, norms, background, stability."""
    name, top_k = SOURCE_NAMES[found.source], found.top_k
    spread = "It is concentrated" if found.share.low > 2 * found.uniform else "It is spread about evenly"
    lines = [
        f"The {top_k} patches with the most {name} in layer {found.layer} hold {percent(found.share)} of what patches "
        f"get. Of an even spread they would hold {_share(found.uniform)}. {spread}.",
        f"The vectors of flagged patches are {number(found.norm_ratio)} times as long as those of the others. Outliers "
        "as the papers on registers describe them are about ten times as long.",
        "When an image is shifted by a hundredth of its shorter side, two pixels at least, "
        f"{percent(found.after_shift)} of the flagged patches are flagged again; layer {found.other} flags "
        f"{percent(found.in_other)} of them, too. Of as many random patches {_share(found.uniform)} would be.",
    ]
    if found.background is not None:
        difference = _side(found.background_difference, "more", "less", "neither more nor less, as far as can be told,")
        lines.insert(
            2,
            f"{percent(found.background)} of the flagged patches lie on background, of the others "
            f"{percent(found.background_others)}: flagged ones do so {difference} often (difference "
            f"{points(found.background_difference)}).",
        )
    return lines


def following_sentences(found: FollowingFindings) -> list[str]:
    """Overlap and attention."""
    follows = _side(
        found.overlap_above,
        "The language model follows the vision tower",
        "The language model looks elsewhere",
        "That is not to be told from chance",
    )
    more = _side(found.share_above, "more than", "less than", "about")
    return [
        f"Of the patches that a token of the caption looks at most, as many as are flagged, {percent(found.overlap)} "
        f"are flagged; of random ones {_share(found.chance)} would be. {follows}.",
        f"The flagged patches get {percent(found.share)} of a token's attention to the image, {more} their share of "
        f"all patches, {_share(found.chance)}.",
    ]


def question_sentences(found: QuestionKnowledge) -> list[str]:
    """AUCs of log P(yes)."""
    counts = found.counts
    return [
        f"Questions: of {counts['hallucinated'] + counts['denied']} absent objects asked for, the model says that "
        f"{percent(found.rate)} are there.",
        "Under the outlier-only prompt, the log-probability of yes ranks objects that are there above absent ones that "
        f"the model denies with an AUC of {number(found.present[METHOD])}, and objects that it hallucinates above them "
        f"with {number(found.hallucinated[METHOD])}. An AUC of 1 tells all apart, of 0.5 none.",
        "DAMRO can help only where outliers know more of what is hallucinated than of what is there, and more than the "
        f"controls know. Hallucinated less present: {number(found.difference[METHOD], signed=True)}. "
        f"{_controls(found.above_controls)}",
    ]


def caption_sentences(found: CaptionKnowledge) -> list[str]:
    """AUCs of words."""
    return [
        f"Captions: of {sum(found.counts.values())} objects that they name, {percent(found.rate)} are not there.",
        "Under the outlier-only prompt, the log-probability of a hallucinated word ranks above that of a true one with "
        f"an AUC of {number(found.hallucinated[METHOD])}, above chance by "
        f"{number(found.above_chance[METHOD], signed=True)}. {_controls(found.above_controls)}",
    ]


def _controls(above: Mapping[str, Interval | None]) -> str:
    told = ", ".join(f"{number(above[name], signed=True)} than under {name}" for name in CONTROLS)
    return f"The AUC of what is hallucinated is higher by {told}."


def room_sentences(found: HeadRoom, task: str) -> list[str]:
    """Open steps, and the best contrast."""
    steps = {"questions": "answers", "captions": "steps of captions"}[task]
    opens = ", ".join(f"{percent(share)} at beta {beta:g}" for beta, share in found.open_steps.items())
    label = {"questions": "Questions", "captions": "Captions"}[task]
    best = found.best[METHOD]
    what = {
        "questions": "changes accuracy there by",
        "captions": "turns words of absent objects into words of objects that are there, less the reverse, by",
    }[task]
    undone = {"questions": ("wrong answers", "right ones"), "captions": ("hallucinated words", "true ones")}[task]
    tried = f"{len(found.alphas)} alphas and {len(found.betas)} betas"
    return [
        f"{label}: of the {steps} a contrast can change those with two or more plausible tokens, {opens}.",
        f"Of {tried}, alpha {best.alpha:g} and beta {best.beta:g} are best on one half of the images. On the "
        f"{found.held_out} images of the other half, this {what} {points(best.change)}, and undoes "
        f"{percent(best.avoided)} of the {undone[0]} and {percent(best.lost)} of the {undone[1]}.",
        "With the best of their own, controls change "
        + ", ".join(f"{points(found.best[name].change)} ({name})" for name in CONTROLS)
        + "; DAMRO less these: "
        + ", ".join(f"{points(found.above_controls[name])} ({name})" for name in CONTROLS)
        + ".",
        *(
            ["Captions are not written anew: every word is tried behind what greedy search wrote (teacher-forced)."]
            if task == "captions"
            else ["This is exact: an answer is its first token, read as POPE's rule reads it."]
        ),
    ]


def _side(value: Interval | None, above: str, below: str, neither: str) -> str:
    """Which side of zero an interval lies on, in words."""
    if value is None or value.ends is None:
        return neither
    return above if value.low > 0 else below if value.high < 0 else neither


def sections(found: Diagnosis) -> dict[str, list[str]]:
    """All sentences by their heading."""
    parts = {"Outliers": outlier_sentences(found.outliers)}
    if found.following is not None:
        parts["Does the language model follow?"] = following_sentences(found.following)
    known: list[str] = []
    room: list[str] = []
    if found.questions is not None and found.question_room is not None:
        known += question_sentences(found.questions)
        room += room_sentences(found.question_room, "questions")
    if found.captions is not None and found.caption_room is not None:
        known += caption_sentences(found.captions)
        room += room_sentences(found.caption_room, "captions")
    if known:
        parts |= {"What do the outliers know?": known, "Head room": room}
    return parts
