"""From a batch of samples to answers: what a run does with a model. The one room of runs that knows torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, GenerationConfig, LogitsProcessor, PreTrainedModel

from damro.answering import Answer, answer_chats, search_config
from damro.decoding.branches.encoder_decoder import returned_prompt
from damro.decoding.branches.prefix import read_prompt
from damro.decoding.counting import answer_lengths, counting
from damro.decoding.drawing import SeededSampling
from damro.decoding.families import family_of
from damro.decoding.generate import decode
from damro.decoding.inside import check_compiled, works_inside
from damro.decoding.prompts import Prompt
from damro.decoding.rules import Contrast
from damro.decoding.search import Search
from damro.decoding.settings import end_tokens
from damro.eval.benchmark import Benchmark
from damro.eval.runs.costs import Costs
from damro.eval.runs.faults import find_fault
from damro.eval.runs.kept import Kept, KeptBatch, OneLook
from damro.eval.runs.loop import Answered
from damro.eval.runs.request import RunRequest
from damro.eval.samples import OpenImage, Sample, bounded, image_of
from damro.inputs import Chat
from damro.loading import Loaded, load_model, prepare_inputs
from damro.methods import Greedy, Recipe
from damro.methods.base import seed_of
from damro.methods.patches import PatchContrast
from damro.pruning import Pruning


@dataclass
class Engine:
    """Answers batches of samples with one model and one method.

    Attributes:
        model: In evaluation mode.
        processor: The model's, padding as `damro.loading` has it.
        recipe: What is contrasted, settled for the model, and how tokens are drawn.
        max_new_tokens: Longest answer in tokens.
        top_p: Nucleus of sampling.
        pruning: Which image columns the full prompt keeps; None for all.
        compile: Whether steps run as a compiled graph.
        exact: Whether every sample is answered by itself, whose rounding then depends on no other.
        seed: Of sampling and of random patches.
        open_image: From an image's name to the image.
        costs: What answers have cost since `take_costs`; None where nothing is measured.
        batch: What engines of other methods share with this one; None if it works alone.
    """

    model: PreTrainedModel
    processor: Any
    recipe: Recipe
    max_new_tokens: int
    seed: int
    open_image: OpenImage
    top_p: float = 1.0
    pruning: Pruning | None = None
    compile: bool = False
    exact: bool = False
    costs: Costs | None = None
    batch: KeptBatch | None = None
    config: GenerationConfig = field(init=False)

    def __post_init__(self) -> None:
        """Settle how ``generate`` searches, whatever the checkpoint would like: sampling is `SeededSampling`'s."""
        self.config = search_config(self.model, self.processor, self.max_new_tokens)

    def answer(self, batch: Sequence[Sample]) -> list[Answered]:
        """Answer a batch; see `damro.eval.runs.loop.AnswerBatch`."""
        answers: dict[str, Answered] = {}
        images: dict[str, Image.Image] = {}
        for sample in batch:
            if sample.image is None:
                continue
            try:
                images[sample.sample_id] = self.open_image(sample.image)
            except (ValueError, OSError) as error:
                answers[sample.sample_id] = Answered(None, error=str(error), fault=find_fault(error, opening=True))
        good = [sample for sample in batch if sample.sample_id not in answers]
        for part in [[sample] for sample in good] if self.exact else [good]:
            answers.update(self._answer_or_split(part, images))
        return [answers[sample.sample_id] for sample in batch]

    def _answer_or_split(self, batch: Sequence[Sample], images: dict[str, Image.Image]) -> dict[str, Answered]:
        """Answer a batch; halve it while memory is short, and take samples one by one to find one that fails."""
        from accelerate.utils import find_executable_batch_size
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        if not batch:
            return {}
        try:
            return self._answer_together(batch, images)
        except Exception as error:
            short_of_memory = should_reduce_batch_size(error)
            gives_way = short_of_memory and self.batch is not None and self.batch.give_way()
            if len(batch) == 1 and not gives_way:
                reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                fault = find_fault(error, short_of_memory=short_of_memory)
                return {batch[0].sample_id: Answered(None, error=reason, fault=fault)}
        if gives_way:
            clear_device_cache(garbage_collection=True)
            return self._answer_or_split(batch, images)  # as a whole, as it would have been answered alone
        size = len(batch)
        if not short_of_memory:
            return {key: value for sample in batch for key, value in self._answer_or_split([sample], images).items()}

        def halve() -> int:
            nonlocal size
            size = size // 2
            return size

        @find_executable_batch_size(  # type: ignore[untyped-decorator]
            starting_batch_size=halve(), reduce_batch_size_fn=halve
        )
        def answer_parts(batch_size: int) -> dict[str, Answered]:
            parts: dict[str, Answered] = {}
            for start in range(0, len(batch), batch_size):
                part = batch[start : start + batch_size]
                # A single sample that does not fit fails by itself; more than one are halved further.
                together = self._answer_or_split if batch_size == 1 else self._answer_together
                try:
                    parts.update(together(part, images))
                except Exception as error:
                    if should_reduce_batch_size(error):
                        raise
                    parts.update(self._answer_or_split(part, images))
            return parts

        return dict(answer_parts())

    def _answer_together(self, batch: Sequence[Sample], images: dict[str, Image.Image]) -> dict[str, Answered]:
        """Answer a batch at once; questions about one image share its encoding and what they begin with."""
        texts = [sample for sample in batch if sample.image is None]
        if texts:
            seen = [sample for sample in batch if sample.image is not None]
            return {**self._answer_texts(texts), **(self._answer_together(seen, images) if seen else {})}
        if len({sample.image for sample in batch}) == 1:
            return self._generate(batch, images, shared=len(batch) > 1)
        groups: dict[str | None, list[Sample]] = {}
        for sample in batch:
            groups.setdefault(sample.image, []).append(sample)
        if max(map(len, groups.values())) == 1:
            return self._generate(batch, images, shared=False)
        parts = [self._generate(group, images, shared=len(group) > 1) for group in groups.values()]
        return {key: answered for part in parts for key, answered in part.items()}

    def _answer_texts(self, batch: Sequence[Sample]) -> dict[str, Answered]:
        """Answer prompts without an image: plainly, since there is nothing to contrast with."""
        kept = self.keeping(batch)
        texts = kept.once((self.recipe.temperature, self.top_p), lambda: self._continue_texts(batch))
        return {one.sample_id: Answered(text) for one, text in zip(batch, texts, strict=True)}

    def _continue_texts(self, batch: Sequence[Sample]) -> list[str]:
        chats = [Chat(({"role": "user", "content": [{"type": "text", "text": one.prompt}]},)) for one in batch]
        answers = [Answer(self.max_new_tokens, seed=seed) for seed in self.seeds(batch)]
        answer_chats(self.model, self.processor, chats, self.recipe, answers, top_p=self.top_p)
        return [answer.text.strip() for answer in answers]

    def keeping(self, samples: Sequence[Sample]) -> Kept:
        """Return what is kept of samples that are answered together: nothing yet, if this engine works alone."""
        return Kept() if self.batch is None else self.batch.of(samples)

    @torch.no_grad()
    def _generate(
        self, batch: Sequence[Sample], images: dict[str, Image.Image], *, shared: bool
    ) -> dict[str, Answered]:
        with self._measuring(len(batch), 1 if shared else len(batch)) as tokens:
            return self._write(batch, images, tokens, shared=shared)

    def take_costs(self) -> Costs:
        """Return what answers have cost since the last call, and measure from here on."""
        taken, self.costs = self.costs or Costs(), Costs()
        return taken

    @contextmanager
    def _measuring(self, samples: int, images: int) -> Iterator[list[int]]:
        """While open, measures, if anything is; yields a list that takes the numbers of tokens."""
        tokens: list[int] = []
        if self.costs is None:
            yield tokens
            return
        began = time.perf_counter()
        with counting(self.model) as passes:
            yield tokens
        seconds = round(time.perf_counter() - began, 4)
        vision = round(passes.looks * images, 4)
        self.costs += Costs(samples, images, sum(tokens), seconds, passes.rows, vision)

    def _write(
        self, batch: Sequence[Sample], images: dict[str, Image.Image], tokens: list[int], *, shared: bool
    ) -> dict[str, Answered]:
        kept = self.keeping(batch)
        inputs, contrast = self.prepare(batch, images, kept, shared=shared)
        processors: list[LogitsProcessor] = []
        if self.recipe.temperature:
            processors.append(SeededSampling(self.seeds(batch), self.recipe.temperature, self.top_p))
        ids = decode(
            self.model,
            inputs,
            contrast,
            shared_prefix=shared,
            compile=self.compile,
            read=read_prompt if self.batch is None else kept.read,
            generation_config=self.config,
            logits_processor=processors,
        )
        new = ids[:, returned_prompt(self.model, inputs).shape[1] :]
        if self.costs is not None:
            tokens += answer_lengths(new, end_tokens(self.model, {"generation_config": self.config})[0])
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        found = contrast.by_row() if isinstance(contrast, PatchContrast) else [None] * len(batch)
        return {
            sample.sample_id: Answered(text.strip(), outliers)
            for sample, text, outliers in zip(batch, texts, found, strict=True)
        }

    def prepare(
        self, batch: Sequence[Sample], images: Mapping[str, Image.Image], kept: Kept, *, shared: bool
    ) -> tuple[BatchFeature, Contrast | Prompt | Search]:
        """Return the inputs of samples, and the prompts and rule of the method for them.

        Args:
            batch: Samples with an image.
            images: The images, by sample id.
            kept: What is kept of the batch for other methods.
            shared: Whether all samples are about one image.
        """
        inputs = kept.once("inputs", lambda: self._inputs(batch, images))
        shown = batch[:1] if shared else batch
        pictures = [images[sample.sample_id] for sample in shown]
        scene = self.scene(list(map(image_of, shown)), pictures, shared=shared, kept=kept)
        return inputs, self.recipe.method.prepare(self.model, inputs, scene)

    def seeds(self, batch: Sequence[Sample]) -> list[int]:
        """Return the seed of each sample's tokens."""
        return [seed_of(self.seed, sample.sample_id, "tokens") for sample in batch]

    def _inputs(self, batch: Sequence[Sample], images: Mapping[str, Image.Image]) -> BatchFeature:
        pictures, prompts = [images[one.sample_id] for one in batch], [one.prompt for one in batch]
        return prepare_inputs(self.processor, pictures, prompts, self.model)

    def scene(
        self,
        images: Sequence[str],
        pictures: Sequence[Image.Image] | None = None,
        *,
        shared: bool,
        kept: Kept | None = None,
    ) -> OneLook:
        """Return what a method is shown of a batch.

        Args:
            images: Their names, one a prompt or one for all.
            pictures: The images themselves, likewise, for methods that change them.
            shared: Whether all prompts are about one image.
            kept: What is kept of the batch for other methods; None if there are none.
        """
        looks = (kept or Kept()).looks
        return OneLook(
            shared, self.pruning, self.processor, seed=self.seed, images=tuple(images), pictures=pictures, kept=looks
        )


def load(request: RunRequest) -> Loaded:
    """Load the model of a request, as the options say; one that cannot answer is an error."""
    loaded = load_model(
        request.model,
        device=request.device_map or request.device,
        dtype=request.dtype,
        revision=request.revision,
        quantization=request.quantization,
        attn_implementation=request.attn_implementation,
    )
    family_of(loaded.model)  # a bare ViT loads too
    return loaded


def make_engine(request: RunRequest, loaded: Loaded, open_image: OpenImage) -> Engine:
    """Return what answers a request's samples.

    Raises:
        DecodingError: There is no such method, it does not work with this model, a parameter is out of range, or the
            model cannot be pruned so.
    """
    recipe, benchmark = request.recipe, request.asked
    method = recipe.method.settle(loaded.model.config.model_type, benchmark.task, request.seed)
    engine = _engine_for(benchmark)(
        model=loaded.model,
        processor=loaded.processor,
        recipe=recipe._replace(method=method),
        max_new_tokens=1 if benchmark.reads_logits else request.max_new_tokens or benchmark.max_new_tokens,
        seed=request.seed,
        open_image=bounded(open_image, request.max_pixels),
        top_p=request.top_p,
        pruning=None if request.keep_tokens is None else Pruning(request.keep_tokens),
        compile=request.compile,
        exact=request.exact,
    )
    _try_out(engine)
    if request.continuous:
        from damro.eval.runs.stream import check_streams  # which is made of this

        check_streams(engine)
    return engine


def _engine_for(benchmark: Benchmark) -> type[Engine]:
    if not benchmark.reads_logits:
        return Engine
    from damro.eval.runs.yes_no import YesNoEngine  # which is made of the class above

    return YesNoEngine


def _try_out(engine: Engine) -> None:
    """Refuse, before the first sample, what would fail with every one of them: both prompts of a blank image.

    Of methods that look into the language model a token is written too, as only then all is seen of it.
    """
    if isinstance(engine.recipe.method, Greedy) and engine.pruning is None and not engine.compile:
        return
    inputs, found = prepare_blank(engine)
    if engine.compile:
        decoder = family_of(engine.model).decoder(engine.model)
        check_compiled(decoder, found, "auto", {"generation_config": engine.config})
    elif isinstance(found, Search) or works_inside(found):
        decode(engine.model, inputs, found, generation_config=engine.config, max_new_tokens=1)


def prepare_blank(engine: Engine) -> tuple[BatchFeature, Contrast | Prompt | Search]:
    """Return what `Engine.prepare` returns of a question about a blank image."""
    size = getattr(getattr(engine.model.config, "vision_config", None), "image_size", None) or 224
    width, height = (size, size) if isinstance(size, int) else (size[1], size[0])
    blank = Sample("blank", "blank", "?", {})
    return engine.prepare([blank], {"blank": Image.new("RGB", (width, height))}, Kept(), shared=False)
