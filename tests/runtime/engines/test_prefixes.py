"""What is kept of texts that ended: within its bound of memory, each once, and the longest beginning is found."""

import random
import tracemalloc

import numpy as np
from phi3_onnx.runtime.decoding.kvcache import common_length
from phi3_onnx.runtime.engines.arena import Arena, CacheShape
from phi3_onnx.runtime.engines.prefixes import Kept, PrefixStore

KILO = 1000


def kept(*tokens: int, beyond: bool = False, size: int = 10) -> Kept:
    return Kept(tokens, beyond, np.zeros(size * KILO, np.int8))


def test_a_text_larger_than_the_store_is_not_kept() -> None:
    store = PrefixStore(100 * KILO)
    store.add(kept(1, size=60))
    store.add(kept(2, size=101))
    assert [text.tokens for text in store] == [(1,)]
    store.add(kept(3, size=60))
    assert [text.tokens for text in store] == [(3,)]
    assert store.give_up_one()
    assert not store.give_up_one()
    assert (store.num_bytes, store.num_tokens) == (0, 0)


def test_many_small_texts_stay_within_the_bound_with_all_that_they_take() -> None:
    limit = 1000 * KILO
    arena = Arena(CacheShape(2, 2, 4, np.int8), 1, 64)
    store = PrefixStore(limit)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(2000):
            tokens = [1000 + number, *range(1000, 1004)]
            store.add(Kept(tokens, False, arena.take_out(0, len(tokens))))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert limit / 2 < store.num_bytes <= limit
    assert taken <= limit


def test_a_text_is_kept_once_with_what_it_begins_with() -> None:
    store = PrefixStore(100 * KILO)
    for tokens in ((1, 2), (1, 2), (1,), (1, 2, 300), (1, 2), (70_000,), (1, 2, 300, 4)):
        store.add(kept(*tokens))
    assert [text.tokens for text in store] == [(70_000,), (1, 2, 300, 4)]
    assert store.num_tokens == 5
    store.add(kept(1, 2, beyond=True))
    assert len(list(store)) == 3, "keys of the other kind are of no use for it"


def test_a_text_that_comes_again_is_not_the_next_to_go() -> None:
    store = PrefixStore(25 * KILO)
    store.add(kept(1))
    store.add(kept(2))
    store.add(kept(1))
    store.add(kept(3))
    assert [text.tokens for text in store] == [(1,), (3,)]


def test_the_longest_beginning_is_found_as_by_looking_at_all() -> None:
    draw = random.Random(0)
    store = PrefixStore(10**9)
    for _ in range(300):
        tokens = [draw.choice((1, 255, 256, 65_536)) for _ in range(draw.randrange(1, 9))]
        store.add(kept(*tokens, beyond=draw.random() < 0.5, size=0))
    assert len(list(store)) > 50
    texts = [(text.tokens, text.beyond) for text in store]
    assert not any(
        left != right and left[1] == right[1] and right[0][: len(left[0])] == left[0]
        for left in texts
        for right in texts
    )
    for _ in range(300):
        tokens = [draw.choice((1, 255, 256, 65_536, 3)) for _ in range(draw.randrange(0, 10))]
        beyond = draw.random() < 0.5
        found, shared = store.longest(tokens, beyond)
        assert shared == max(common_length(text, tokens) for text, kind in texts if kind == beyond)
        assert (found is None) == (shared == 0)
        if found:
            assert found.beyond == beyond and common_length(found.tokens, tokens) == shared
