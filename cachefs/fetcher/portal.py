"""``FetcherPortal``: the one door by which threads reach the fetcher.

Nothing of the fetcher may be touched outside its event loop. The portal's methods each run one
question or command there and return what came of it, which is a copy: an answer that belongs
together is one trip."""

import trio

from cachefs.fetcher.fetcher import Fetcher
from cachefs.fetcher.flight import Progress
from cachefs.fetcher.waits import Waiting
from cachefs.sources import Health


class FetcherPortal:
    """*fetcher*, for threads that :func:`trio.to_thread.run_sync` has started in the event loop
    that runs it: they block until that loop has answered.

    From other threads and from the event loop itself every method raises RuntimeError. Where the
    task that waits for the thread has been cancelled, every method raises
    :class:`trio.Cancelled` and does nothing.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self.source_url = fetcher.source.url
        """Where images come from; it never changes."""

    def under_way(self) -> set[str]:
        """The images that are being fetched, or about to be once more."""
        return trio.from_thread.run_sync(self._fetcher.under_way)

    def is_under_way(self, image_id: str) -> bool:
        """Whether the image is one of :meth:`under_way`."""
        return trio.from_thread.run_sync(self._fetcher.is_under_way, image_id)

    def progress(self, image_id: str) -> Progress | None:
        """How far the fetch of an image is; None where it is not :meth:`under_way`."""
        return trio.from_thread.run_sync(self._fetcher.progress, image_id)

    def sources(self) -> list[tuple[str, Health]]:
        """The sources' URLs, and how they were when last asked."""
        return trio.from_thread.run_sync(self._fetcher.sources)

    def image_wanted(self, image_id: str) -> None:
        """Say, before an image is queued, that the source is to be asked for it whatever it has
        answered. Raises ImageExistsError where it is being fetched already."""
        trio.from_thread.run_sync(self._fetcher.image_wanted, image_id)

    def wake(self) -> None:
        """Have the fetcher look at the queue now: after an image was queued."""
        trio.from_thread.run_sync(self._fetcher.wake)

    def waiting(self, image_id: str) -> Waiting | None:
        """What an image waits for in the queue; None where it does not."""
        return trio.from_thread.run_sync(self._fetcher.waiting, image_id)

    def forget_rejected(self, image_id: str | None = None) -> None:
        """Say that the failure of an image, or of all, is forgotten: readers may have its bytes
        fetched."""
        trio.from_thread.run_sync(self._fetcher.forget_rejected, image_id)

    def cancel(self, image_id: str) -> None:
        """Stop the fetch of an image and throw away what has come; returns when that is done.
        Raises ImageNotFoundError where there is none."""
        trio.from_thread.run(self._fetcher.cancel, image_id)
