import pytest
from phi3_onnx.configs import EngineError, UsageError
from phi3_onnx.runtime.decoding.kvcache import KvCache
from scripted import ScriptedEngine

SWITCH = 40


def make(*, context=100, chunk=16, **options):
    engine = ScriptedEngine([[1] * 90] * 9, vocab_size=50, end_token=2)
    engine.prefill_chunk = chunk
    return engine, KvCache(engine, context_length=context, **options)


def hold(cache, prompt, room=10):
    cache.reserve(len(prompt) + room)
    return list(cache.prefill(prompt))


def test_a_prompt_runs_in_chunks_and_reports_each():
    engine, cache = make()
    assert hold(cache, range(3, 43)) == [0, 16, 32, 40]
    assert engine.runs == [(0, 16), (16, 16), (32, 8)]
    assert cache.tokens == tuple(range(3, 43))


def test_only_what_is_new_is_run():
    engine, cache = make()
    hold(cache, [*range(3, 13)], room=40)
    cache.append(20)
    engine.runs.clear()
    assert hold(cache, [*range(3, 13), 20, 21, 22])[0] == 11
    assert engine.runs == [(11, 2)]


def test_a_cache_that_differs_is_rewound_to_where_it_does():
    engine, cache = make()
    hold(cache, [3, 4, 5, 6, 7, 8])
    engine.runs.clear()
    hold(cache, [3, 4, 5, 9])
    assert engine.runs == [(3, 1)]
    assert cache.tokens == (3, 4, 5, 9)


def test_the_same_prompt_again_runs_its_last_token_for_the_logits():
    engine, cache = make()
    hold(cache, [3, 4, 5])
    engine.runs.clear()
    hold(cache, [3, 4, 5])
    assert engine.runs == [(2, 1)]


def test_an_engine_that_can_not_append_runs_everything_at_once():
    engine, cache = make()
    engine.continuous = False
    hold(cache, [*range(3, 43)])
    hold(cache, [*range(3, 43), 5])
    assert engine.runs == [(0, 40), (0, 41)]


def test_what_was_run_before_a_cancelled_prefill_counts():
    engine, cache = make()
    cache.reserve(90)
    steps = cache.prefill([*range(3, 43)])
    assert [next(steps), next(steps)] == [0, 16]
    steps.close()
    assert hold(cache, [*range(3, 43)])[0] == 16
    assert engine.runs == [(0, 16), (16, 16), (32, 8)]


class TestLongRope:
    """The engine's runs, where the graph's rotary factors depend on the length at the end of each."""

    def test_a_short_prompt_is_as_any_other(self):
        engine, cache = make(switch=SWITCH)
        hold(cache, [*range(3, 43)])
        assert engine.runs == [(0, 16), (16, 16), (32, 8)]

    def test_the_first_run_of_a_long_prompt_passes_the_switch(self):
        engine, cache = make(switch=SWITCH)
        hold(cache, [3] * 41)
        assert engine.runs == [(0, 41)]
        engine, cache = make(switch=SWITCH)
        hold(cache, [3] * 70)
        assert engine.runs == [(0, 41), (41, 16), (57, 13)]

    def test_a_token_that_crosses_the_switch_runs_all_again_once(self):
        engine, cache = make(switch=SWITCH)
        hold(cache, [3] * 39)
        engine.runs.clear()
        for _ in range(4):
            cache.append(4)
        assert engine.runs == [(39, 1), (0, 41), (41, 1), (42, 1)]
        assert len(cache.tokens) == 43

    def test_a_turn_that_crosses_the_switch_begins_anew(self):
        engine, cache = make(switch=SWITCH)
        hold(cache, [3] * 30, room=70)
        engine.runs.clear()
        assert hold(cache, [3] * 50)[0] == 0
        assert engine.runs == [(0, 41), (41, 9)]

    def test_beyond_the_switch_the_cache_is_kept(self):
        engine, cache = make(switch=SWITCH)
        hold(cache, [3] * 50, room=50)
        engine.runs.clear()
        hold(cache, [3] * 60)
        assert engine.runs == [(50, 10)]

    def test_back_below_the_switch_begins_anew(self):
        engine, cache = make(switch=SWITCH)
        hold(cache, [3] * 50)
        engine.runs.clear()
        hold(cache, [3] * 20)
        assert engine.runs == [(0, 16), (16, 4)]

    def test_a_rewind_to_below_the_switch_and_beyond_again_passes_it_in_one_run(self):
        engine, cache = make(switch=SWITCH)
        hold(cache, [3] * 50, room=50)
        engine.runs.clear()
        hold(cache, [*[3] * 10, *[4] * 45])
        assert engine.runs == [(10, 31), (41, 14)]


class TestMemory:
    def test_a_reservation_is_announced_before_it_is_made(self):
        told = []
        engine, cache = make(
            bytes_per_token=1000, on_reserve=lambda *numbers: told.append((*numbers, engine.opened[:]))
        )
        cache.reserve(20, spare=30)
        assert told == [(50, 50000, [])]
        assert engine.opened == [50]

    def test_what_fits_is_not_reserved_again(self):
        engine, cache = make()
        cache.reserve(20, spare=30)
        cache.reserve(50)
        assert engine.opened == [50]
        cache.reserve(51)
        assert engine.opened == [50, 51]
        assert engine.open_count == 1

    def test_spare_ends_at_the_context_and_at_half_of_free_memory(self):
        engine, cache = make(bytes_per_token=10, free_memory=lambda: 600)
        cache.reserve(20, spare=1000)
        assert engine.opened == [30]
        engine, cache = make()
        cache.reserve(20, spare=1000)
        assert engine.opened == [100]

    def test_more_than_is_free_is_refused_with_the_numbers(self):
        engine, cache = make(bytes_per_token=1024**3, free_memory=lambda: 2 * 1024**3)
        with pytest.raises(UsageError, match=r"KV cache of 3 tokens takes 3.22 GB and 2.15 GB of memory are free"):
            cache.reserve(3)
        assert engine.opened == []

    def test_more_than_the_context_is_refused(self):
        _, cache = make()
        with pytest.raises(UsageError, match="101 tokens do not fit into the model's context of 100"):
            cache.reserve(101)

    def test_a_closed_cache_can_be_used_again(self):
        engine, cache = make()
        hold(cache, [3, 4])
        cache.close()
        assert (cache.tokens, engine.open_count) == ((), 0)
        hold(cache, [3, 4])
        assert engine.runs == [(0, 2), (0, 2)]


def test_a_failed_run_leaves_an_empty_cache(monkeypatch):
    engine, cache = make()
    hold(cache, [3, 4])
    sequence = cache._sequence
    monkeypatch.setattr(sequence, "append", lambda tokens: (_ for _ in ()).throw(EngineError("out of memory")))
    with pytest.raises(EngineError, match="out of memory"):
        cache.append(5)
    assert (cache.tokens, cache.capacity, engine.open_count) == ((), 0, 0)


def test_no_tokens_are_refused():
    _, cache = make()
    cache.reserve(5)
    with pytest.raises(UsageError, match="no tokens"):
        next(cache.prefill([]))
