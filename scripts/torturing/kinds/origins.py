"""An origin that is slow, endless, lies, redirects, compresses, lists, is busy; and then behaves.

No reader gets wrong bytes, and none waits longer than the time-out lets it. What passes leaves a
queued image queued: it is cached once the origin behaves.
"""

import contextlib
import gzip
import random
import time
from http import HTTPStatus

from torturing.content import Image
from torturing.kind import COMBOS
from torturing.kinds.background import meanwhile
from torturing.mount import Mount
from torturing.origin import PIECE, Manner, Request
from torturing.patience import until
from torturing.world import MIB, World

TIMEOUT = 4
RECOVERY = 90.0
"""Seconds after which all is cached once the origin behaves: pauses between tries grow."""

FRESH = 2.5
"""Seconds after which a list of checksums is asked for again."""

TOLERATED = ("EIO", "EHOSTUNREACH", "ETIMEDOUT", "ENOENT", "EACCES", "ENOSPC")
"""What a reader may be told of an image of such an origin."""


def slow(request: Request, image: Image) -> None:
    """A few bytes a second, of what is right."""
    request.head(200, {"Content-Length": image.size, "ETag": '"slow"'})
    for start in range(0, min(image.size, 40), 4):
        request.send(image.read(start, start + 4))
        request.origin.stall(0.5)
    request.close_connection = True


def silent(request: Request, _: Image) -> None:
    """Nothing at all."""
    request.origin.stall(30)
    request.close_connection = True


def endless(request: Request, image: Image) -> None:
    """A body without a length and without an end."""
    request.close_connection = True
    request.head(200, {"Connection": "close"})
    for _ in range(400):
        request.send(image.read(0, PIECE) or b"x" * 1000)


def endless_header(request: Request, _: Image) -> None:
    """A head without an end."""
    request.close_connection = True
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(3000):
        request.wfile.write(f"X-{number}: {'y' * 100}\r\n".encode())


def longer(request: Request, image: Image) -> None:
    """More promised than is sent."""
    request.close_connection = True
    request.head(200, {"Content-Length": image.size + 1000, "Connection": "close"})
    request.send(image.read(0, image.size))


def shorter(request: Request, image: Image) -> None:
    """Less promised than there is."""
    request.good(Image(image.seed, image.name, max(1, image.size // 2), image.version))


def wrong_range(request: Request, image: Image) -> None:
    """Another range than was asked for, said so."""
    wanted = request.wanted(image.size)
    if not wanted or wanted[1] - wanted[0] < 2:
        request.good(image)
        return
    start, stop = wanted[0], wanted[0] + (wanted[1] - wanted[0]) // 2
    head = {"Content-Range": f"bytes {start}-{stop - 1}/{image.size}", "ETag": '"r"'}
    request.head(206, {**head, "Content-Length": stop - start})
    request.send(image.read(start, stop))


def shifted_range(request: Request, image: Image) -> None:
    """The bytes of another range, under the head of the right one."""
    wanted = request.wanted(image.size)
    start, stop = wanted or (0, image.size)
    head: dict[str, object] = {"Content-Length": stop - start, "ETag": '"s"'}
    if wanted:
        head["Content-Range"] = f"bytes {start}-{stop - 1}/{image.size}"
    request.head(206 if wanted else 200, head)
    shift = max(0, min(4096, image.size - stop))
    request.send(image.read(start + shift, stop + shift).ljust(stop - start, b"?"))


def changing_tag(request: Request, image: Image) -> None:
    """Another ETag with each answer, as mirrors behind one name have."""
    request.good(image, {"ETag": f'"{time.monotonic_ns()}"'})


def wrong_bytes(request: Request, image: Image) -> None:
    """Another image's bytes, of the same size."""
    request.good(Image("other", image.name, image.size, image.version))


def zeros(request: Request, image: Image) -> None:
    """As long as it should be, and nothing in it."""
    request.head(200, {"Content-Length": image.size})
    request.send(bytes(image.size))


def compressed(request: Request, image: Image) -> None:
    """In gzip, whatever was asked for."""
    request.body(gzip.compress(image.read(0, image.size), 1), {"Content-Encoding": "gzip"})


def page(request: Request, _: Image) -> None:
    """A page that says that there is nothing."""
    request.body(b"<!DOCTYPE html><p>Not here", {"Content-Type": "text/html"})


def listing(request: Request, _: Image) -> None:
    """A listing where an image should be."""
    text = b'<html><head><title>Index of /</title></head><a href="../">../</a></html>'
    request.body(text, {"Content-Type": "text/html; charset=utf-8"})


def around(request: Request, image: Image) -> None:
    """A redirect to itself."""
    request.refuse(HTTPStatus.FOUND, {"Location": f"/{image.name}"})


def away(request: Request, _: Image) -> None:
    """A redirect to a port where nobody listens."""
    request.refuse(HTTPStatus.FOUND, {"Location": "http://127.0.0.1:9/"})


def busy(request: Request, _: Image) -> None:
    """Too many requests."""
    request.refuse(HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": 1})


def unavailable(request: Request, _: Image) -> None:
    """Out of service."""
    request.refuse(HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": 1})


def broken(request: Request, image: Image) -> None:
    """The connection is cut in the middle of the body."""
    request.close_connection = True
    start, stop = request.wanted(image.size) or (0, image.size)
    head: dict[str, object] = {
        "Content-Length": stop - start,
        "ETag": f'"{image.name}-{image.version}"',
    }
    if request.wanted(image.size):
        head["Content-Range"] = f"bytes {start}-{stop - 1}/{image.size}"
    request.head(206 if request.wanted(image.size) else 200, head)
    request.send(image.read(start, start + (stop - start) // 2))


def nonsense(request: Request, _: Image) -> None:
    """No HTTP at all."""
    request.close_connection = True
    request.wfile.write(b"SSH-2.0-OpenSSH_9.2p1\r\n" * 20)


MANNERS: tuple[Manner, ...] = (
    *(slow, silent, endless, endless_header, longer, shorter, wrong_range, shifted_range),
    *(changing_tag, wrong_bytes, zeros, compressed, page, listing, around, away, busy),
    *(unavailable, broken, nonsense),
)

CONVINCING = (shorter, shifted_range, wrong_bytes, zeros, endless)
"""Of these only a digest tells that they are wrong, at the end: a reader of an image under way may
get what the origin says. What is published must be right all the same."""

PASSING = (busy, unavailable)
"""After these a queued image is fetched without being asked for again."""


class Origins:
    """Each image is served in another bad manner; some seconds later all is well."""

    name = "origin"
    disturbs = "an origin slow, endless, lying, redirecting, compressing, listing, busy, cut off"
    least = 10.0
    combos = COMBOS

    def run(self, world: World, rng: random.Random, deadline: float) -> None:
        """Rounds of some manners at a time."""
        manners = list(MANNERS)
        rng.shuffle(manners)
        mount = world.mount(max_size=128 * MIB, timeout=f"{TIMEOUT}s", max_fetches=6)
        turn = 0
        while turn == 0 or time.monotonic() < deadline:
            chosen = [manners[(turn * 5 + number) % len(manners)] for number in range(5)]
            self._round(world, rng, mount, chosen)
            turn += 1
        world.check(mount, 128 * MIB)

    def _round(self, world: World, rng: random.Random, mount: Mount, manners: list[Manner]) -> None:
        good = world.images(rng, 2, 10_000, MIB)
        bad = world.images(rng, len(manners), 10_000, 3 * MIB, prefix="bad")
        for image, manner in zip(bad, manners, strict=True):
            world.origin.manners[image.name] = manner
            if manner not in CONVINCING and rng.random() < 0.5:
                world.origin.unsummed.add(image.name)
            world.figures.fault()
        # A list of checksums is believed for some seconds: it is not read before it has them all.
        time.sleep(FRESH)
        mount.fetch(*(image.name for image in good))  # what is cached needs no origin
        names = {image.name: manner for image, manner in zip(bad, manners, strict=True)}
        for image in bad:
            mount.touch(f"queue/{image.name}")
        told = [image for image in bad if names[image.name] not in CONVINCING] or good
        lied = [image.name for image in bad if names[image.name] in CONVINCING]
        dice = random.Random(rng.random())

        def read_a_lie() -> None:
            if lied:
                mount.read(dice.choice(lied))

        with (
            meanwhile(read_a_lie, world.figures, 0.2, name="reader"),
            world.readers(mount, good, ("open", "list")),
            world.readers(mount, told, ("open", "open", "keep"), tolerate=TOLERATED),
        ):
            time.sleep(min(6.0, TIMEOUT + 1.0))
            mount.status()
            # While their readers are there: a source that drips has not failed, and holds them up.
            for image in bad:
                world.origin.manners.pop(image.name)
        self._recover(world, mount, names)

    def _recover(self, world: World, mount: Mount, manners: dict[str, Manner]) -> None:
        for name, manner in manners.items():
            if manner not in PASSING:
                with contextlib.suppress(OSError):
                    mount.remove(f"queue/{name}")  # its next try may be minutes away
                with contextlib.suppress(OSError):
                    mount.touch(f"queue/{name}")
        if until(lambda: set(manners) <= set(mount.listed("cached")), RECOVERY):
            return
        for name in sorted(set(manners) - set(mount.listed("cached"))):
            place = next(
                (
                    where
                    for where in ("queue", "incomplete", "invalid")
                    if name in mount.listed(where)
                ),
                "",
            )
            record = ""
            with contextlib.suppress(OSError):
                record = mount.show(f"{place}/{name}").strip() if place else "nowhere"
            what, where = manners[name].__name__, f"{place} {record[-200:]}"
            world.figures.error(f"{what}: not cached once the origin behaves: {where}")
            with contextlib.suppress(OSError):
                mount.remove(f"{place}/{name}")
