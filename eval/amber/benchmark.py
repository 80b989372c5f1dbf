"""AMBER as a benchmark: the official questions about the official images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from damro.eval.amber.groups import AmberAnswer, score_groups
from damro.eval.amber.questions import (
    ANNOTATIONS,
    DIMENSIONS,
    QUERIES,
    RELATION,
    SAFE_WORDS,
    AmberQuestion,
    find_file,
    load_questions,
    load_words,
)
from damro.eval.amber.table import load_table
from damro.eval.benchmark import DataRequest, Group, Records, Scoring, TableBenchmark
from damro.eval.errors import DataFormatError, EvalError
from damro.eval.records import digest_of_file
from damro.eval.samples import Dataset, ImageSource, Sample, check_samples, folder_opener

_DIMENSION_OF = {kind: name for name, kinds in DIMENSIONS.items() for kind in kinds}


@dataclass(frozen=True)
class AmberScoring(Scoring):
    """How AMBER's answers are read.

    Attributes:
        yes_no: exact for the script's rule, to which "Yes" and "No" are answers and nothing else is; start for yes or
            no as the first word.
        similarity: exact for the words of AMBER's list and their synonyms; spacy for words of alike vectors too, as the
            script has it (en_core_web_lg).
    """

    yes_no: Literal["exact", "start"] = "exact"
    similarity: Literal["exact", "spacy"] = "exact"


@dataclass(frozen=True)
class Amber(TableBenchmark):
    """AMBER: descriptions, and yes/no questions on existence, attributes and relations (Wang et al. 2023).

    A template of prompts is for the yes/no questions, and for the descriptions where these are asked for alone.

    Attributes:
        split: generative, existence, attribute, relation; none for all four.
        annotations: folder of the official files, data of github.com/junyangwang0410/AMBER (Apache-2.0); not needed for
            the yes/no questions of a table.
    """

    name: ClassVar = "amber"
    source: ClassVar = "AMBER, arXiv 2311.07397"
    prompt: ClassVar = "{question}"
    max_new_tokens: ClassVar = 1024
    scoring: ClassVar = AmberScoring
    rescored: ClassVar = ("annotations",)
    recorded: ClassVar = ("answer", "image", "question", "kind")
    command: ClassVar = "damro.eval.amber.command"

    split: tuple[str, ...] = ()
    annotations: str | None = None
    data: str | None = None
    columns: tuple[str, ...] = ()

    def load(self, request: DataRequest) -> Dataset:
        """See :meth:`damro.eval.benchmark.Benchmark.load`."""
        opener: ImageSource
        source: dict[str, Any] = {}
        if self.data:
            folder = None if self.annotations is None else Path(self.annotations)
            table = load_table(self.data, self.columns, request.images, self.split, folder)
            questions, opener, source["table"] = table
        else:
            folder = self._folder()
            if request.images is None:
                raise EvalError(
                    "amber needs its images, AMBER_1.jpg to AMBER_1004.jpg, got none: give --images, or --data with a "
                    "table"
                )
            questions, opener = load_questions(folder, self.split), folder_opener(request.images)
        taken: Counter[str] = Counter()
        by_image: dict[str, list[Sample]] = {}
        for asked in questions:
            dimension = _DIMENSION_OF[asked.kind]
            taken[dimension] += 1
            if request.limit is None or taken[dimension] <= request.limit:
                by_image.setdefault(asked.image, []).append(self._sample(request, asked))
        samples = [sample for of_image in by_image.values() for sample in of_image]
        check_samples(samples)
        official = () if folder is None else (QUERIES, ANNOTATIONS, RELATION, SAFE_WORDS)
        files = {name: digest_of_file(find_file(Path(str(folder)), name)) for name in official}
        return Dataset(samples, opener, {"questions": {"n": len(samples), "sha256": files}, **source})

    def score(self, records: Records, scoring: AmberScoring) -> list[Group]:
        """A group of the descriptions, one a kind of questions, a dimension and all of them, and the AMBER score."""
        answers = [AmberAnswer(_to_question(key, fields), fields["answer"]) for key, fields in records.items()]
        described = any(answer.question.kind == "generative" for answer in answers)
        words = load_words(self._folder()) if described else None
        return score_groups(answers, words, similarity=scoring.similarity, yes_no=scoring.yes_no)

    def _folder(self) -> Path:
        if self.annotations is None:
            raise EvalError(
                "amber needs AMBER's official files: give --annotations with the folder 'data' of "
                "github.com/junyangwang0410/AMBER"
            )
        return Path(self.annotations)

    def _sample(self, request: DataRequest, asked: AmberQuestion) -> Sample:
        fields: dict[str, Any] = {"question_id": asked.question_id, "question": asked.text, "kind": asked.kind}
        if asked.label is None:
            fields |= {"truth": list(asked.truth), "hallu": list(asked.hallu)}
        else:
            fields["label"] = asked.label
        templated = asked.label is not None or self.split == ("generative",)
        prompt = self.ask(request, asked.text) if templated else asked.text
        return Sample(asked.question_id, asked.image, prompt, fields)


def _to_question(key: str, fields: Any) -> AmberQuestion:
    """The question that a record is of."""
    kind = fields["kind"]
    lists = [fields.get("truth"), fields.get("hallu")]
    if kind == "generative":
        whole = all(isinstance(names, list) and all(isinstance(one, str) for one in names) for names in lists)
    else:
        whole = kind in _DIMENSION_OF and fields.get("label") in ("yes", "no")
    if not whole:
        raise DataFormatError(
            f"record {key!r} must have its label, or the lists 'truth' and 'hallu' of a description: restore the "
            "records or run the benchmark anew"
        )
    if kind == "generative":
        truth, hallu = map(tuple, lists)
        return AmberQuestion(key, fields["image"], fields["question"], kind, None, truth, hallu)
    return AmberQuestion(key, fields["image"], fields["question"], kind, fields["label"])
