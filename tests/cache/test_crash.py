"""A writer that is killed at any step leaves a whole image or no trace, never wrong bytes."""

import pytest
from support.place import Place, content, fill, ids, put, read

DATA = content("a", 300_000)
PUBLISH = """
from support.dying import die_before
step = int(sys.stdin.readline())
cache = place.cache(max_size=1_000_000)
cache.queue_image("a")
steps = die_before(None if step < 0 else step)
cache.cache_image_iter("a", [content("a", 300_000)[i : i + 100_000] for i in (0, 100_000, 200_000)])
print(len(steps))
for name, target in steps:
    print(name, target)
"""
EVICT = """
from support.dying import die_before
step = int(sys.stdin.readline())
cache = place.cache(max_size=20)
steps = die_before(None if step < 0 else step)
cache.prune()
print(len(steps))
"""
REJECT = """
from support.dying import die_before
step = int(sys.stdin.readline())
cache = place.cache()
steps = die_before(None if step < 0 else step)
try:
    cache.cache_image_iter("a", [content("a", 1000)], "0" * 32)
except ValueError:
    raise
except Exception:
    pass
print(len(steps))
"""


def run(place: Place, code: str, step: int) -> tuple[int, list[str]]:
    """Run *code* and have it die before *step*: status and lines of output."""
    with place.start(code) as process:
        output = process.communicate(f"{step}\n", timeout=30)[0]
    return process.returncode, output.splitlines()


def check_consistent(place: Place) -> None:
    cache = place.cache()
    assert ids(cache) == place.names()
    assert cache.get_cache_size() == sum((place.path / n).stat().st_size for n in place.names())
    assert place.names("incomplete") == []
    cache.delete_all_cached_images()
    assert place.names() == []


@pytest.mark.timeout(120)
def test_a_writer_killed_at_any_step_leaves_a_whole_image_or_no_trace(place: Place) -> None:
    step, cached = 0, []
    while True:
        status, _ = run(place, PUBLISH, step)
        cache = place.cache()
        cached.append(cache.is_cached("a"))
        if cached[-1]:
            assert read(cache, "a") == DATA
            assert not cache.is_queued("a")
        else:
            assert cache.is_queued("a")
        check_consistent(place)
        assert cache.cache_image_iter("a", [DATA])
        cache.delete_all_cached_images()
        if status == 0:
            break
        assert status == -9
        step += 1
    assert step > 8
    # From the rename on the image is there: no step before it makes it so, none after it unmakes.
    assert cached == sorted(cached)
    assert cached[-3:] == [True] * 3


@pytest.mark.timeout(120)
def test_a_reader_that_runs_on_can_cache_what_a_killed_writer_could_not(place: Place) -> None:
    steps = int(run(place, PUBLISH, -1)[1][0])
    cache = place.cache()
    for step in range(steps):
        cache.delete_all_cached_images()
        run(place, PUBLISH, step)
        if not cache.is_cached("a"):
            assert cache.cache_image_iter("a", [DATA])
        assert read(cache, "a") == DATA
        assert cache.get_cache_size() == len(DATA)


def test_an_evictor_killed_at_any_step_leaves_what_can_be_evicted(place: Place) -> None:
    step, status = 0, -9
    while status:
        fill(place.cache(), "abc", 10)
        status, _ = run(place, EVICT, step)
        cache = place.cache(max_size=20)
        assert ids(cache) in (["a", "b", "c"], ["b", "c"])
        cache.prune()
        assert ids(cache) == ["b", "c"]
        check_consistent(place)
        step += 1
    assert step > 2


def test_a_writer_of_wrong_bytes_killed_at_any_step_caches_nothing(place: Place) -> None:
    step, status = 0, -9
    while status:
        status, _ = run(place, REJECT, step)
        cache = place.cache()
        assert ids(cache) == []
        assert place.names("incomplete") == []
        cache.clean()
        assert place.names("invalid") == []
        assert put(cache, "a", 10) == read(cache, "a")
        cache.delete_all_cached_images()
        step += 1
    assert step > 4


def test_bytes_are_synced_before_the_rename_and_the_directory_after_it(place: Place) -> None:
    _, lines = run(place, PUBLISH, -1)
    path = place.path
    synced = lines.index(f"fsync {path}/incomplete/a")
    recorded = next(i for i, line in enumerate(lines) if line.startswith("put "))
    renamed = lines.index(f"rename {path}/incomplete/a")
    named = lines.index(f"fsync {path}")
    assert synced < recorded < renamed < named
    written = [f"{call} {path}/incomplete/a" for call in ("pwrite", "ftruncate", "setxattr")]
    assert set(written) <= set(lines[:synced])
    assert not set(lines[synced:]) & set(written)


def test_a_killed_writer_does_not_block_its_image(place: Place) -> None:
    code = """
tee = iter(place.cache().get_caching_iter("a", None, [b"one", b"two"]))
next(tee)
print("writing", flush=True)
sys.stdin.read()
"""
    cache = place.cache()
    with place.start(code) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert not cache.queue_image("a")
        assert not cache.cache_image_iter("a", [b"other"])
        writer.kill()
        writer.communicate(timeout=20)
    assert cache.queue_image("a")
    assert put(cache, "a", 10) == read(cache, "a")
