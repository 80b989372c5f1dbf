"""Opens the images of the next batch while this one is answered."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

from damro.eval.samples import OpenImage

if TYPE_CHECKING:
    from PIL import Image


class ImagesAhead:
    """Opens images in a thread of its own; an `OpenImage`.

    What went wrong with an image is raised where it is asked for. All images are opened by that one thread, one after
    the other, so that what opens them need not serve several at once.

    Args:
        open_image: From an image's name to the image.
    """

    def __init__(self, open_image: OpenImage) -> None:
        """Open nothing yet."""
        self._open_image = open_image
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._asked: dict[str, Future[Image.Image]] = {}

    def want(self, names: Iterable[str]) -> None:
        """Have images opened, in this order, and forget all others."""
        before, self._asked = self._asked, {}
        for name in dict.fromkeys(names):
            self._asked[name] = before.get(name) or self._thread.submit(self._open_image, name)
        for name in before.keys() - self._asked.keys():
            before[name].cancel()

    def __call__(self, name: str) -> Image.Image:
        """Return an image; see `damro.eval.samples.OpenImage`."""
        asked = self._asked.get(name) or self._thread.submit(self._open_image, name)
        return asked.result()

    def __enter__(self) -> ImagesAhead:
        """Return what opens images."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread, which finishes the image at hand and opens no other."""
        self._thread.shutdown(cancel_futures=True)
