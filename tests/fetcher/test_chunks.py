"""ChunkMap against a model: any order of arrivals, failures, demands and crashes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from cachefs.fetcher.chunks import ChunkMap, Span

CHUNK = 10


class Chunks(RuleBasedStateMachine):
    """The model: the set of chunks that have arrived, and those on their way by span."""

    spans = Bundle("spans")

    @initialize(size=st.integers(0, 400))
    def begin(self, size: int) -> None:
        self.size = size
        self.count = -(-size // CHUNK)
        self.map = ChunkMap(size, CHUNK)
        self.have: set[int] = set()
        self.wanted: list[int] = []
        self.under_way: list[Span] = []
        self.last: int | None = None

    def chunks(self, span: Span) -> range:
        return range(span.start // CHUNK, -(-span.stop // CHUNK))

    @property
    def claimed(self) -> set[int]:
        return {number for span in self.under_way for number in self.chunks(span)}

    def took(self, span: Span | None) -> Span:
        assert span is not None
        numbers = set(self.chunks(span))
        assert numbers
        assert not numbers & self.have, "asked for what has arrived"
        assert not numbers & self.claimed, "asked for twice at once"
        assert span.start % CHUNK == 0
        assert span.stop % CHUNK == 0 or span.stop == self.size
        self.under_way.append(span)
        return span

    @property
    def missing(self) -> set[int]:
        return set(range(self.count)) - self.have - self.claimed

    @rule(start=st.integers(0, 450), length=st.integers(0, 120))
    def demand(self, start: int, length: int) -> None:
        stop = min(start + length, self.size)
        asked = [n for n in range(self.count) if n * CHUNK < stop and (n + 1) * CHUNK > start]
        if start >= stop:
            asked = []
        news = [number for number in asked if number in self.missing]
        if start < stop:
            news = [number for number in news if number not in self.wanted]
            assert self.map.demand(start, start + length) == bool(news)
            self.wanted += news

    @rule(target=spans, most=st.integers(0, 100))
    def claim_demanded(self, most: int) -> Span:
        waiting = [number for number in self.wanted if number in self.missing]
        span = self.map.claim_demanded(most)
        if not waiting:
            assert span is None
            return Span(0, 0)
        span = self.took(span)
        assert self.chunks(span)[0] == waiting[0], "the oldest demand goes first"
        assert len(span) <= max(CHUNK, most)
        self.wanted = [n for n in self.wanted if n not in self.chunks(span) and n in waiting]
        return span

    @rule(target=spans, most=st.integers(0, 100))
    def claim_next(self, most: int) -> Span:
        if not self.missing:
            assert self.map.claim_next(most) is None
            return Span(0, 0)
        span = self.took(self.map.claim_next(most))
        self.wanted = [n for n in self.wanted if n not in self.chunks(span)]
        return span

    @rule(span=consumes(spans), data=st.data())
    def end(self, span: Span, data: st.DataObject) -> None:
        """A request ends, having brought all, some or nothing of its span."""
        if span not in self.under_way:
            return
        numbers = self.chunks(span)
        stop = data.draw(st.integers(numbers.start, numbers.stop))
        if stop > numbers.start:
            self.map.arrived(span.start, min(stop * CHUNK, self.size))
            self.last = stop - 1
        self.have |= set(range(numbers.start, stop))
        self.map.release(span)
        self.under_way.remove(span)

    @rule()
    def crash(self) -> None:
        """Only what has arrived is remembered."""
        self.map = ChunkMap(self.size, CHUNK, present=sorted(self.have))
        self.under_way, self.wanted, self.last = [], [], None

    @precondition(lambda self: hasattr(self, "map"))
    @invariant()
    def it_says_what_has_arrived(self) -> None:
        gap = next((n for n in range(self.count) if n not in self.have), self.count)
        assert self.map.prefix == min(gap * CHUNK, self.size)
        assert self.map.complete == (len(self.have) == self.count)
        assert self.map.arrived_bytes == sum(
            min(CHUNK, self.size - number * CHUNK) for number in self.have
        )
        for number in range(self.count):
            start = number * CHUNK
            assert self.map.covers(start + 1, start + 2) == (
                number in self.have or start + 1 >= self.size
            )
        assert self.map.covers(0, self.size + 5) == self.map.complete
        assert self.map.covers(self.size, self.size + 1)
        if self.count and self.map.complete:
            ends = [n for n in range(self.count) if self.map.completes(n * CHUNK, n * CHUNK + 1)]
            assert ends == ([self.last] if self.last is not None else [*range(self.count)])

    def teardown(self) -> None:
        """Whatever has happened, all that is missing is claimed at last."""
        if not hasattr(self, "map"):
            return
        for span in self.under_way:
            self.map.release(span)
        self.under_way = []
        while not self.map.complete:
            span = self.took(self.map.claim_next(25))
            self.map.arrived(span.start, span.stop)
            self.have |= set(self.chunks(span))
            self.under_way.remove(span)
        assert self.map.claim_next(25) is None
        assert self.map.claim_demanded(25) is None


TestChunks = Chunks.TestCase
TestChunks.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(order=st.permutations(range(12)))
def test_the_prefix_is_right_in_any_order_of_arrivals(order: list[int]) -> None:
    chunks = ChunkMap(115, CHUNK)
    for done, number in enumerate(order, 1):
        chunks.arrived(number * CHUNK, min(number * CHUNK + CHUNK, 115))
        here = set(order[:done])
        gap = next((n for n in range(12) if n not in here), 12)
        assert chunks.prefix == min(gap * CHUNK, 115)


def test_an_empty_image_is_complete() -> None:
    chunks = ChunkMap(0)
    assert chunks.complete
    assert chunks.claim_next(1) is None
    assert not chunks.demand(0, 10)
    assert not chunks.completes(0, 10)


@pytest.mark.parametrize("most", [0, 1, CHUNK])
def test_at_least_a_chunk_is_claimed(most: int) -> None:
    assert ChunkMap(100, CHUNK).claim_next(most) == Span(0, CHUNK)


def test_the_fill_goes_ahead_of_a_sequential_reader_and_then_back() -> None:
    chunks = ChunkMap(40 * 2**20)
    mib = 2**20
    chunks.demand(10 * mib, 10 * mib + 1)
    assert chunks.claim_demanded(4 * mib) == Span(10 * mib, 14 * mib)
    assert chunks.claim_next(4 * mib) == Span(0, 4 * mib)  # one look is no sequence
    chunks.demand(14 * mib, 14 * mib + 1)
    assert chunks.claim_demanded(4 * mib) == Span(14 * mib, 18 * mib)
    assert chunks.claim_next(16 * mib) == Span(18 * mib, 34 * mib)
    assert chunks.claim_next(16 * mib) == Span(34 * mib, 40 * mib)
    assert chunks.claim_next(16 * mib) == Span(4 * mib, 10 * mib)
