"""One thread that owns the model and answers together what waits and can be answered together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any

from PIL import Image
from transformers import PreTrainedModel

from damro.answering import Answer, answer_chats
from damro.inputs import Chat
from damro.methods import Recipe
from damro.serve.errors import RequestError
from damro.serve.requests import Asked

_SIDE = 224  # of the image that is asked about before anybody asks


class Job:
    """A request on its way.

    Args:
        asked: what it asks.
        tell: is called with every new piece of the answer, in the model's thread.

    Attributes:
        result: the answer and the length of the prompt, once there is one; or why there is none.
    """

    def __init__(self, asked: Asked, tell: Callable[[str], None] | None = None) -> None:
        self.asked = asked
        self.result: Future[tuple[Answer, int]] = Future()
        self.cancelled = False
        self._tell = tell
        self._answer: Answer | None = None

    @property
    def key(self) -> Hashable:
        """What requests of one batch have in common."""
        return (self.asked.recipe, self.asked.top_p, bool(self.asked.chat.images))

    @property
    def told(self) -> bool:
        """Whether a client may have read a piece of the answer already."""
        return self._tell is not None and self._answer is not None and bool(self._answer.tokens)

    def cancel(self) -> None:
        """Has it end as soon as can be; from any thread."""
        self.cancelled = True
        if self._answer is not None:
            self._answer.cancel()

    def start(self) -> Answer:
        """An answer to be filled, anew at every try."""
        asked = self.asked
        self._answer = Answer(asked.max_new_tokens, stop=asked.stop, seed=asked.seed, tell=self._tell)
        if self.cancelled:
            self._answer.cancel()
        return self._answer


class Batcher:
    """Answers jobs, the oldest first, and with it others that wait and have the same method and settings.

    Nothing is waited for: a job that is alone is answered alone. Prompts of different length and images of different
    size stand in one batch; chats with an image and chats without do not. A batch that fails is taken apart.

    Args:
        model: the model.
        processor: its processor.
        batch_size: jobs at once.
    """

    def __init__(self, model: PreTrainedModel, processor: Any, batch_size: int) -> None:
        self._model, self._processor, self._batch_size = model, processor, batch_size
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="damro-model", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher has been closed")
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Ends all jobs and the thread."""
        with self._changed:
            self._closed = True
            for job in (*self._running, *self._waiting):
                job.cancel()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._running = self._take()
            if self._running:
                self._answer(self._running)

    def _take(self) -> list[Job]:
        """The next batch; those that nobody waits for any more are let go."""
        for job in [job for job in self._waiting if job.cancelled]:
            self._waiting.remove(job)
            job.result.set_exception(_cancelled())
        key = self._waiting[0].key if self._waiting else None
        batch = [job for job in self._waiting if job.key == key][: self._batch_size]
        for job in batch:
            self._waiting.remove(job)
        return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        """Answers a batch; one that fails job by job, but for those of which a piece has been told."""
        try:
            self._answer_together(batch)
        except Exception as error:  # whatever it is, the one who asked is told
            for job in batch:
                if len(batch) > 1 and not job.told:
                    self._answer([job])
                else:
                    job.result.set_exception(error)

    def _answer_together(self, batch: Sequence[Job]) -> None:
        asked = batch[0].asked
        answers = [job.start() for job in batch]
        chats = [job.asked.chat for job in batch]
        lengths = answer_chats(self._model, self._processor, chats, asked.recipe, answers, top_p=asked.top_p)
        for job, answer, length in zip(batch, answers, lengths, strict=True):
            if answer.reason == "cancelled":
                job.result.set_exception(_cancelled())
            else:
                job.result.set_result((answer, length))


def try_out(model: PreTrainedModel, processor: Any, recipe: Recipe) -> None:
    """Asks about a blank image, so that what would fail with every request fails at once.

    Raises:
        DecodingError: the method does not work with this model, or a parameter of it.
    """
    parts = [{"type": "image"}, {"type": "text", "text": "?"}]
    chat = Chat(({"role": "user", "content": parts},), (Image.new("RGB", (_SIDE, _SIDE)),))
    answer_chats(model, processor, [chat], recipe, [Answer(1)])


def _cancelled() -> RequestError:
    """Read where the server ends before an answer does; one who hangs up reads nothing."""
    return RequestError("the server ends before the answer does; ask again when it is back", status=503)
