"""CHAIR as a benchmark: captions of COCO's images, of any others with a vocabulary, or of the embedded scenes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from damro.eval.benchmark import DataRequest, Difference, Group, Note, Records, Scoring, TableBenchmark
from damro.eval.chair.coco import ImageId, image_key, normalize_objects, read_objects
from damro.eval.chair.groups import EQUAL_LENGTH, ReadCaptions, cut_captions, drop_cut_sentences, score_group
from damro.eval.chair.images import DAMRO_500, ROLES, choose_images, choose_rows, read_image_ids
from damro.eval.chair.matchers import load_matcher
from damro.eval.chair.scoring import Caption, parse_captions
from damro.eval.chair.texts import shortest
from damro.eval.chair.vocabulary import Vocabulary, load_vocabulary
from damro.eval.errors import EvalError
from damro.eval.formats.images import load_image_table
from damro.eval.records import digest_of_file
from damro.eval.resources import coco_objects_path
from damro.eval.samples import (
    Dataset,
    ImageSource,
    Sample,
    check_samples,
    digest_of,
    folder_opener,
    need_folder,
    open_scene,
    scene_objects,
)

PAPER_MATCHER = "nltk"
"""What the released code of DAMRO finds objects with (``evaluation/eval_chair/eval_chair.py``)."""


@dataclass(frozen=True)
class ChairScoring(Scoring):
    """How objects are found in captions.

    Attributes:
        matcher: nltk, builtin, or auto for nltk where its data is at hand.
        drop_cut_sentence: leave out a last sentence without an end, as a limit of tokens cuts it.
        equal_length: also score the captions of an image up to the length of the shortest of all runs.
        limits: By image, the tokens of a caption that are scored for that; `Chair.settle_scoring` finds them.
    """

    matcher: Literal["auto", "nltk", "builtin"] = "auto"
    drop_cut_sentence: bool = False
    equal_length: bool = False
    limits: Mapping[str, int] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Chair(TableBenchmark):
    """CHAIR: which objects that a caption names are not in the image (Rohrbach et al., EMNLP 2018).

    Attributes:
        objects: ground truth of the images instead of the shipped one of COCO 2014.
        image_ids: a file that names the images to caption, damro-500 for those of the DAMRO paper, which POPE asks
            about, or seed-500, which are chosen by the seed, as they are where it is left out.
        vocabulary: a file of words and their synonyms to look for, instead of COCO's 80 objects.
    """

    name: ClassVar = "chair"
    source: ClassVar = "CHAIR, EMNLP 2018, arXiv 1809.02156"
    prompt: ClassVar = "Generate a short caption of this image."
    max_new_tokens: ClassVar = 1024
    task: ClassVar = "chair"
    scoring: ClassVar = ChairScoring
    rescored: ClassVar = ("objects", "vocabulary")
    recorded: ClassVar = ("answer",)
    command: ClassVar = "damro.eval.chair.command"

    objects: str | None = None
    image_ids: str | None = None
    vocabulary: str | None = None
    data: str | None = None
    columns: tuple[str, ...] = ()

    def load(self, request: DataRequest) -> Dataset:
        """See :meth:`damro.eval.benchmark.Benchmark.load`."""
        if request.scenes is not None:
            self.check_scenes_heed()
            truth = scene_objects(request.scenes)
            source = {"objects": {"source": "damro.tiny.scenes", "sha256": digest_of(truth)}}
            images = {str(number): name for number, name in enumerate(truth)}
            objects_of = {key: truth[name] for key, name in images.items()}
            return Dataset(self._captions(request, images), open_scene, source, objects_of)
        objects = self.truth(request)
        opener: ImageSource
        data: dict[str, Any] = {}
        if self.data:
            table = load_image_table(self.data, ROLES, self.columns, request.images)
            rows = choose_rows(self.data, table.rows, objects, self.image_ids, request.limit, request.seed)
            names, opener = table.images(list(rows.values()), "image_id")
            images, data["table"] = dict(zip(rows, names, strict=True)), table.source
        else:
            folder = need_folder(request.images, self.name)
            opener = folder_opener(folder)
            images = choose_images(folder, objects, self.image_ids, request.limit, request.seed)
        file = Path(self.objects) if self.objects else coco_objects_path()
        data |= {
            "objects": {"file": file.name, "sha256": digest_of_file(file)},
            "images": {"n": len(images), "sha256": digest_of(sorted(images))},
        }
        if self.vocabulary:
            data["vocabulary"] = {"file": Path(self.vocabulary).name, "sha256": digest_of_file(self.vocabulary)}
            self._normalize(objects, set(images))  # what is no word is told before the run
        return Dataset(self._captions(request, images), opener, data, {key: objects[key] for key in images})

    def truth(self, request: DataRequest) -> dict[str, list[str]]:
        """The objects of each image, by its key."""
        if request.scenes is not None:
            return {str(number): names for number, names in enumerate(scene_objects(request.scenes).values())}
        return {image_key(image): names for image, names in read_objects(self.objects).items()}

    def settle_scoring(self, scoring: ChairScoring, runs: Mapping[str, Records]) -> ChairScoring:
        """See :meth:`damro.eval.benchmark.Benchmark.settle_scoring`."""
        if not scoring.equal_length:
            return scoring
        matcher = load_matcher(scoring.matcher, self._words())
        parsed = [_captions_of(records, scoring)[0] for records in runs.values()]
        lengths = [{caption.image_id: len(matcher.tokens(caption.text)) for caption in captions} for captions in parsed]
        return replace(scoring, limits=shortest(lengths))

    def score(self, records: Records, scoring: ChairScoring) -> list[Group]:
        """One group, of all captions, and where it is asked for one of them at equal length."""
        matcher = load_matcher(scoring.matcher, self._words())
        captions, dropped = _captions_of(records, scoring)
        objects = self._normalize(scoring.truth, {caption.image_id for caption in captions})
        missing = [caption.image_id for caption in captions if caption.image_id not in objects]
        if missing:
            raise EvalError(f"objects must hold every captioned image, got none for {len(missing)} ({missing[0]}, ...)")
        files = {"objects": self.objects, "vocabulary": self.vocabulary}
        notes = [Note(name, Path(file).name) for name, file in files.items() if file is not None]
        notes += dropped
        read = ReadCaptions(captions, [matcher.read(caption.text) for caption in captions], matcher.name)
        groups = [score_group(read, objects, notes)]
        if scoring.equal_length:
            groups.append(
                score_group(cut_captions(read, scoring.limits), objects, notes, name=EQUAL_LENGTH, beside=True)
            )
        return groups

    def paper_differences(self, request: DataRequest, scored: Group) -> list[Difference]:
        """See :meth:`damro.eval.benchmark.Benchmark.paper_differences`."""
        own = [note for note in scored.notes if note.name in ("objects", "vocabulary")]  # they may be given anew
        found = [f"{note.name}: of {note.value}; the paper has COCO's" for note in own]
        if request.scenes is not None:
            found.append("images: embedded scenes; the paper's are of COCO val2014")
        elif scored.counts.keys() != _paper_images():
            found.append(
                f"images: {len(scored.counts)} that are not the paper's, the {len(_paper_images())} that POPE asks "
                "about: give --image-ids damro-500"
            )
        if scored.scores["matcher"] != PAPER_MATCHER:
            found.append(f"matcher: {scored.scores['matcher']}; the paper's script is that of {PAPER_MATCHER}")
        return list(map(Difference, found))

    def _normalize(self, truth: Mapping[str, Sequence[str]], wanted: set[str]) -> dict[str, frozenset[str]]:
        given: dict[ImageId, Sequence[str]] = dict(truth.items())
        return normalize_objects(given, wanted, self._words())

    def _words(self) -> Vocabulary:
        return load_vocabulary(self.vocabulary)

    def _captions(self, request: DataRequest, images: Mapping[str, str]) -> list[Sample]:
        pairs = list(images.items())[: request.limit]
        samples = [
            Sample(key, name, self.ask(request), {"image_id": int(key) if key.isdigit() else key})
            for key, name in pairs
        ]
        check_samples(samples)
        return samples


def _captions_of(records: Records, scoring: ChairScoring) -> tuple[list[Caption], list[Note]]:
    """The captions of a run as they are to be scored, and what was done to them."""
    captions = parse_captions([{"image_id": f["image_id"], "caption": f["answer"]} for f in records.values()])
    if not scoring.drop_cut_sentence:
        return captions, []
    captions, note = drop_cut_sentences(captions)
    return captions, [note]


@functools.cache
def _paper_images() -> frozenset[str]:
    return frozenset(read_image_ids(DAMRO_500))
