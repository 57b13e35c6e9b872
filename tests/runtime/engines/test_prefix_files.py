"""Texts kept on disk: the same bits after a restart, and nothing wrong taken from a damaged or foreign file."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phi3_onnx.configs import UsageError
from phi3_onnx.configs.sizes import parse_size
from phi3_onnx.runtime import Model, Response, load
from phi3_onnx.runtime.engines.arena import CacheShape
from phi3_onnx.runtime.engines.prefix_files import BLOCK, PrefixFiles
from phi3_onnx.runtime.engines.together import Together

SHAPE = CacheShape(2, 2, 4, np.int8)
MANY = 2**30


def text(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(5, 300, count).tolist()


def arrays(seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(-127, 127, (2, BLOCK, 4)).astype(np.int8) for _ in range(4)]


def files(folder: Path, *identity: str, limit: int = MANY) -> PrefixFiles:
    return PrefixFiles(folder, identity or ("package", "version"), SHAPE, limit)


def save(kept: PrefixFiles, tokens: list[int], beyond: bool = False) -> None:
    while stop := kept.unsaved(tokens, beyond):
        kept.save(tokens, beyond, stop, arrays(stop))


def read(kept: PrefixFiles, tokens: list[int], start: int = 0) -> list[int]:
    found = list(kept.read(tokens, False, start, kept.stored(tokens, False)))
    for first, values in found:
        assert all(map(np.array_equal, values, arrays(first + BLOCK)))
    return [first for first, _ in found]


def test_blocks_come_back_as_they_were(tmp_path: Path) -> None:
    tokens = text(3 * BLOCK + 5)
    save(files(tmp_path), tokens)
    kept = files(tmp_path)
    assert kept.stored(tokens, False) == kept.stored(tokens[: 3 * BLOCK], False) == 3 * BLOCK
    assert read(kept, tokens) == [0, BLOCK, 2 * BLOCK]
    assert read(kept, tokens, BLOCK + 1) == [BLOCK, 2 * BLOCK]
    assert kept.stored([*tokens[: 2 * BLOCK], 1, *tokens[2 * BLOCK :]], False) == 2 * BLOCK
    assert kept.stored(tokens, True) == 0  # LongRoPE's other factors
    assert files(tmp_path, "package", "another version").stored(tokens, False) == 0
    assert kept.num_bytes == sum(path.stat().st_size for path in tmp_path.glob("*/*"))
    assert kept.unsaved(tokens, False) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped", "gone", "empty"])
def test_a_damaged_block_is_a_miss(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    tokens = text(3 * BLOCK)
    save(files(tmp_path), tokens)
    kept = files(tmp_path)
    first, second = list(kept._names.values())[:2]
    content = bytearray(second.read_bytes())
    if damage == "cut":
        second.write_bytes(content[:-1])
    elif damage == "flipped":
        content[-7] ^= 4
        second.write_bytes(content)
    elif damage == "swapped":
        second.write_bytes(first.read_bytes())
    elif damage == "gone":
        second.unlink()
    else:
        second.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert read(kept, tokens) == [0]
    # A file that is gone made room for another process's.
    assert (f"the cache file {second} is ignored and removed" in caplog.text) == (damage != "gone")
    assert not second.exists()
    assert kept.stored(tokens, False) == BLOCK
    save(kept, tokens)  # and is written again
    assert read(kept, tokens) == [0, BLOCK, 2 * BLOCK]


def test_the_longest_unused_goes_first_whatever_package_it_is_of(tmp_path: Path) -> None:
    foreign, one, two, three = (text(2 * BLOCK, seed) for seed in range(4))
    other = files(tmp_path, "another")
    save(other, foreign)
    limit = 2 * other.num_bytes
    kept = files(tmp_path, limit=limit)
    save(kept, one)
    assert kept.num_bytes == limit
    save(kept, two)
    assert files(tmp_path, "another").stored(foreign, False) == 0
    assert kept.stored(one, False) == 2 * BLOCK
    read(kept, one)
    save(kept, three)
    assert [kept.stored(tokens, False) for tokens in (one, two, three)] == [2 * BLOCK, 0, 2 * BLOCK]
    assert kept.num_bytes <= limit
    assert kept.unsaved(two, False) is None  # else the two would send each other away for ever
    nothing = files(tmp_path / "small", limit=10)
    save(nothing, one)
    assert nothing.broken and not list((tmp_path / "small").glob("*/*"))


def test_one_bound_is_for_all_packages_of_a_folder(tmp_path: Path) -> None:
    """Two servers' processes, each of which learns what the other wrote and removed."""
    old, new, mine = (text(2 * BLOCK, seed) for seed in range(3))
    limit = 4 * files(tmp_path)._block_bytes
    one, two = files(tmp_path, "one", limit=limit), files(tmp_path, "two", limit=limit)
    save(one, old)
    for path in tmp_path.glob("*/*.kv"):
        os.utime(path, (1, 1))
    save(one, new)
    save(two, mine)
    assert len(list(tmp_path.glob("*/*.kv"))) == 4
    assert two.num_bytes == limit
    assert [files(tmp_path, "one").stored(tokens, False) for tokens in (old, new)] == [0, 2 * BLOCK]
    assert read(one, old) == []  # without a word of files that are gone
    save(one, text(BLOCK, 4))
    assert one.num_bytes == limit == sum(path.stat().st_size for path in tmp_path.glob("*/*.kv"))


def test_what_others_sent_away_is_not_written_again(tmp_path: Path) -> None:
    limit = 2 * files(tmp_path)._block_bytes
    one, two = files(tmp_path, "one", limit=limit), files(tmp_path, "two", limit=limit)
    first, second = text(BLOCK, 1), text(2 * BLOCK, 2)
    save(one, first)
    save(two, second)
    save(one, text(BLOCK, 3))  # it sees that the first is gone
    assert one.unsaved(first, False) is None  # else the two would send each other away for ever
    assert len(list(tmp_path.glob("*/*.kv"))) == 2


def test_a_folder_that_cannot_be_written_to_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    kept = files(tmp_path / "file")
    save(kept, text(2 * BLOCK))
    assert kept.stored(text(2 * BLOCK), False) == 0
    assert caplog.text.count("are not kept in") == 1


@pytest.fixture(scope="module", params=["gqa", "longrope"])
def model(request: pytest.FixtureRequest, tiny_package: Callable[..., Path]) -> Iterator[Model]:
    longrope = {"original_max_position_embeddings": 100, "max_position_embeddings": 600}
    with load(tiny_package(request.param, "cpu-int4-rtn", **(longrope if request.param == "longrope" else {}))) as it:
        yield it


def answer(model: Model, together: Together, prompt: list[int]) -> Response:
    options = model.options(max_tokens=8, temperature=0.9, seed=3, logprobs=2)
    for chunk in model.joined(together, prompt, options):
        if chunk is None:
            together.step()
        elif chunk.response:
            return chunk.response
    raise AssertionError


def exact(response: Response) -> tuple[Any, ...]:
    return response.token_ids, response.logprobs


def test_a_restart_keeps_beginnings_and_changes_no_bit(model: Model, tmp_path: Path) -> None:
    def started(folder: Path | None = tmp_path) -> Together:
        model.cache_folder = (folder, MANY) if folder else None
        together = model.together(2, 0)
        assert together is not None
        return together

    prompts = [text(40), text(3 * BLOCK + 9, 1), [*text(3 * BLOCK, 1), *text(20, 2)]]
    cold = [exact(answer(model, started(None), prompt)) for prompt in prompts]
    first = started()
    assert [exact(answer(model, first, prompt)) for prompt in prompts[:2]] == cold[:2]
    while first.save_some():
        pass
    again = started()
    responses = [answer(model, again, prompt) for prompt in prompts]
    assert [exact(response) for response in responses] == cold
    assert [response.cached_tokens for response in responses] == [0, 3 * BLOCK, 3 * BLOCK]
    assert again.read_tokens == 3 * BLOCK  # the third took them from memory
    assert again.kept_bytes > 0
    for path in tmp_path.glob("*/*.kv"):
        path.write_bytes(path.read_bytes()[:-1])
    damaged = started()
    assert [exact(answer(model, damaged, prompt)) for prompt in prompts] == cold
    assert damaged.read_tokens == 0


@pytest.mark.parametrize(("given", "wanted"), [("0", 0), ("512MB", 512 * 10**6), ("1.5 gb", 15 * 10**8), ("2k", 2000)])
def test_sizes_are_read(given: str, wanted: int) -> None:
    assert parse_size(given) == wanted


@pytest.mark.parametrize("given", ["", "many", "-1GB", "1XB", "nan"])
def test_what_is_no_size_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="a size must be a number with a unit"):
        parse_size(given)
