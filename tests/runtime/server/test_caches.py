"""Which cache a request gets."""

from pathlib import Path

from phi3_onnx.runtime import Guidance, Model, Sampling
from phi3_onnx.runtime.decoding.engine import GuidedDraws
from phi3_onnx.runtime.decoding.kvcache import KvCache
from phi3_onnx.runtime.server.caches import CachePool
from scripted import scripted_model


def used(pool: CachePool, prompt: list[int]) -> KvCache:
    """Run a prompt in the cache that the pool has for it, and give it back."""
    cache = pool.take(prompt)
    cache.reserve(100)
    list(cache.prefill(prompt))
    pool.give_back(cache)
    return cache


def model(folder: Path) -> Model:
    return scripted_model(folder, [])


def test_a_conversation_gets_its_own_cache_back(fake_package: Path) -> None:
    pool = CachePool(model(fake_package), 3)
    first, second = used(pool, [1, 2, 3, 4]), used(pool, [5, 6, 7, 8])
    assert first is not second
    assert pool.take([1, 2, 3, 4, 9]) is first
    assert pool.take([5, 6, 7, 8, 9]) is second


def test_a_short_common_beginning_does_not_take_a_conversation_away(fake_package: Path) -> None:
    pool = CachePool(model(fake_package), 3)
    long = used(pool, [0, *range(1, 20)])
    assert pool.take([0, *range(50, 70)]) is not long
    assert pool.take([0, *range(1, 12), 70]) is long


def test_the_longest_unused_goes_when_there_is_no_room(fake_package: Path) -> None:
    pool = CachePool(model(fake_package), 2)
    first, second = used(pool, [1, 2, 3]), used(pool, [4, 5, 6])
    used(pool, [1, 2, 3])
    assert pool.take([7, 8, 9]) is second
    assert pool.take([7, 8, 9]) is first


def test_what_is_cached_under_guidance_is_for_the_same_guidance(fake_package: Path) -> None:
    pool = CachePool(model(fake_package), 3)
    guided = GuidedDraws(Guidance("regex", "a+"), Sampling(temperature=0), None)
    cache = pool.take([1, 2, 3], guided)
    cache.reserve(100, guided=guided)
    list(cache.prefill([1, 2, 3]))
    pool.give_back(cache)
    assert pool.take([1, 2, 3, 4]) is not cache
    assert pool.take([1, 2, 3, 4], GuidedDraws(Guidance("regex", "b+"), Sampling(temperature=0), None)) is not cache
    assert pool.take([1, 2, 3, 4], guided) is cache


def test_memory_is_given_back(fake_package: Path) -> None:
    loaded = model(fake_package)
    pool = CachePool(loaded, 2)
    used(pool, [1, 2, 3])
    pool.give_back(pool.take([9, 9]))  # nothing was run in it
    assert pool.cached_tokens == 3
    assert pool.give_up_one() and not pool.give_up_one()
    assert loaded.engine.open_count == 0  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
