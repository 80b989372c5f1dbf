"""The two classes that lmms-eval makes of ``--model damro``. Imported by it alone, once it is asked for."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from damro.answering import Answer, answer_chats
from damro.decoding.families import family_of
from damro.errors import InputsError, ParameterError
from damro.inputs import Chat
from damro.inspection.likelihood import answer_likelihood, prepare_answer
from damro.integrations.lmms_eval import PACKAGE, WORKS_WITH, moved
from damro.integrations.lmms_eval.requests import (
    Generation,
    as_images,
    read_generation,
    read_messages,
    read_recipe,
)
from damro.integrations.versions import untested
from damro.loading import load_model
from damro.methods import Scene
from damro.methods.base import seed_of
from damro.turns import to_chat

try:
    from lmms_eval.api.instance import GenerationResult, TokenCounts
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise moved(error) from error

_log = logging.getLogger(__name__)
_LEFT_ASIDE = ("max_batch_size",)  # what lmms-eval gives to every model


class _Damro(lmms):  # type: ignore[misc]
    """What both classes have in common.

    Args:
        pretrained: a folder, a name on the Hub, or "tiny".
        method: as :func:`damro.methods.parse` reads it. With a temperature it samples at that, whatever a task says.
        batch_size: prompts at once.
        device: as torch names it; ranks of accelerate take the GPU of their number.
        device_map: "auto" spreads the model.
        dtype: of the weights.
        attn_implementation: as transformers names it.
        revision: on the Hub.
        quantization: "4bit" or "8bit".
        **values: parameters of the method, such as ``alpha=0.5``.
    """

    def __init__(
        self,
        pretrained: str = "llava-hf/llava-1.5-7b-hf",
        method: str = "damro",
        batch_size: int | str = 1,
        device: str | None = None,
        device_map: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        revision: str | None = None,
        quantization: str | None = None,
        **values: Any,
    ) -> None:
        super().__init__()
        if (told := untested(PACKAGE, WORKS_WITH)) is not None:
            _log.warning(told)
        if not str(batch_size).isdigit() or not int(batch_size):
            raise ParameterError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        values = {name: value for name, value in values.items() if name not in _LEFT_ASIDE}
        self.recipe = read_recipe(method, values)
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1 and not device_map:
            device = str(self.accelerator.device)
        self._model, self.processor = load_model(
            pretrained,
            device=device_map or device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            revision=None if revision is None else str(revision),
            quantization=quantization,
        )
        family_of(self._model)  # a bare ViT loads too
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.batch_size = int(batch_size)

    @property
    def model(self) -> Any:
        """The LVLM."""
        return self._model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        """Where it is."""
        device: torch.device = self._model.device
        return device

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """The answers to a task's questions, in their order."""
        asked = []
        seen: Counter[tuple[Any, ...]] = Counter()
        for request in requests:
            told, doc_id, task, split = self._told(request.args)
            where = (task, split, doc_id)
            asked.append((read_generation(told), where, seen[where]))
            seen[where] += 1
        results: dict[int, Any] = {}
        with self._progress(len(requests), "Model Responding") as bar:
            for batch in self._batches([generation for generation, *_ in asked], requests):
                chats = {number: self._chat(requests[number].args, _name(asked[number][1])) for number in batch}
                for part in _by_images(chats):
                    answers = self._answer([chats[n] for n in part], [asked[n] for n in part])
                    results |= dict(zip(part, answers, strict=True))
                    bar.update(len(part))
        return [results[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers of every round; a task makes the next question of those before."""
        results = []
        with self._progress(len(requests), "Multi-round Responding") as bar:
            for request in requests:
                told, doc_id, task, split = self._told_rounds(request.args)
                where, rounds = (task, split, doc_id), list[str]()
                for chat in self._rounds(request.args, _name(where), rounds):
                    [answer] = self._answer([chat], [(read_generation(told), where, len(rounds))])
                    rounds.append(answer.text)
                results.append(rounds)
                bar.update(1)
        return results

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """How likely given answers are: their mean negative log-probability, of which lmms-eval takes the least.

        Their end, as the model's chat template writes it, is part of them.
        """
        results = []
        with self._progress(len(requests), "Model Responding") as bar:
            for request in requests:
                if len(request.args) != 6:
                    raise InputsError(
                        "requests of a likelihood must have a context and images, got one of a choice alone; leave "
                        "acc_mutual_info out of the task's metrics"
                    )
                context, target, doc_to_visual, doc_id, task, split = request.args
                doc = self.task_dict[task][split][doc_id]
                continuation = target if isinstance(target, str) else target(doc)
                where = _name((task, split, doc_id))
                question = ("user", [*as_images(doc_to_visual(doc), where), context])
                # The evaluator of 0.7.3 makes a text of a pair that it is given bare.
                results.append(GenerationResult(self._likelihood(to_chat([question]), str(continuation))))
                bar.update(1)
        return results

    def _likelihood(self, chat: Chat, continuation: str) -> tuple[float, bool]:
        inputs, tokens = prepare_answer(self._model, self.processor, chat, continuation.strip())
        scene = Scene(processor=self.processor)
        found = answer_likelihood(self._model, inputs, tokens, self.recipe.method, scene)
        return -float(found.log_probs.mean()), bool(found.best.all())

    def _answer(self, chats: list[Chat], asked: list[tuple[Generation, tuple[Any, ...], int]]) -> list[Any]:
        """The answers to a batch; an error says which samples it is of."""
        generation = asked[0][0]
        answers = [
            Answer(
                one.max_new_tokens,
                stop=one.stop,
                seed=seed_of(torch.initial_seed(), f"{_name(where)} {repeat}", "tokens"),
            )
            for one, where, repeat in asked
        ]
        recipe = self.recipe if self.recipe.temperature else self.recipe._replace(temperature=generation.temperature)
        try:
            lengths = answer_chats(
                self._model,
                self.processor,
                chats,
                recipe,
                answers,
                top_p=generation.top_p,
                settings=generation.settings,
            )
        except Exception as error:
            error.add_note(f"while answering {', '.join(_name(where) for _, where, _ in asked)}")
            raise
        return [
            GenerationResult(answer.text, TokenCounts(input_tokens=length, output_tokens=len(answer.tokens)))
            for answer, length in zip(answers, lengths, strict=True)
        ]

    def _batches(self, generations: list[Generation], requests: Sequence[Any]) -> Iterator[list[int]]:
        """Numbers of requests that are answered together."""
        groups: dict[str, list[int]] = {}
        for number, generation in enumerate(generations):
            groups.setdefault(generation.key, []).append(number)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def _progress(self, total: int, title: str) -> Any:
        return tqdm(total=total, disable=self.rank != 0, desc=title)

    def _told(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Generation keywords, number, task and split of a question."""
        raise NotImplementedError

    def _chat(self, args: tuple[Any, ...], where: str) -> Chat:
        """A question."""
        raise NotImplementedError

    def _told_rounds(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same of a question of several rounds."""
        raise NotImplementedError

    def _rounds(self, args: tuple[Any, ...], where: str, answers: list[str]) -> Iterator[Chat]:
        """The questions of several rounds, one after the other; `answers` has those to the ones before."""
        raise NotImplementedError


class DamroSimple(_Damro):
    """For tasks as texts and images: ``--force_simple``, and tasks that score given answers."""

    is_simple = True

    def _told(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        _, told, _, doc_id, task, split = args
        return told, doc_id, task, split

    def _chat(self, args: tuple[Any, ...], where: str) -> Chat:
        context, _, doc_to_visual, doc_id, task, split = args
        images = as_images(doc_to_visual(self.task_dict[task][split][doc_id]), where)
        return to_chat([("user", [*images, context])])

    def _told_rounds(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        _, told, _, _, doc_id, task, split = args
        return told, doc_id, task, split

    def _rounds(self, args: tuple[Any, ...], where: str, answers: list[str]) -> Iterator[Chat]:
        context, _, doc_to_visual, doc_to_text, doc_id, task, split = args
        doc = self.task_dict[task][split][doc_id]
        visuals, info = doc_to_visual(doc), None
        while True:
            yield to_chat([("user", [*as_images(visuals, where), context])])
            visuals, context, ended, _, info = doc_to_text(
                doc, previous_output=list(answers), round_idx=len(answers), previous_round_info=info
            )
            if ended:
                return


class DamroChat(_Damro):
    """For tasks as messages, which is what lmms-eval takes where a model has both."""

    is_simple = False

    def _told(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        _, _, told, doc_id, task, split = args
        return told, doc_id, task, split

    _told_rounds = _told

    def _chat(self, args: tuple[Any, ...], where: str) -> Chat:
        _, doc_to_messages, _, doc_id, task, split = args
        return to_chat(read_messages(doc_to_messages(self.task_dict[task][split][doc_id]), where))

    def _rounds(self, args: tuple[Any, ...], where: str, answers: list[str]) -> Iterator[Chat]:
        _, doc_to_messages, _, doc_id, task, split = args
        doc = self.task_dict[task][split][doc_id]
        messages, info = doc_to_messages(doc), None
        while True:
            yield to_chat(read_messages(messages, where))
            told = doc_to_messages(doc, round_idx=len(answers), previous_output=list(answers), previous_round_info=info)
            if not isinstance(told, tuple) or told[1]:  # a task of one round returns its messages again
                return
            messages, _, _, info = told


def _name(where: tuple[Any, ...]) -> str:
    task, split, doc_id = where
    return f"{task}/{split}/{doc_id}"


def _by_images(chats: dict[int, Chat]) -> list[list[int]]:
    """Numbers of chats with images, and of those without, which stand in no batch with them."""
    parts = [[number for number, chat in chats.items() if bool(chat.images) == some] for some in (True, False)]
    return [part for part in parts if part]
