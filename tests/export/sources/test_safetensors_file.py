import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from phi3_onnx.configs.errors import SourceError
from phi3_onnx.export.sources import safetensors_file, tensor_bytes
from phi3_onnx.export.sources.safetensors_file import SafetensorsFile
from safetensors.torch import save_file


def read(file: SafetensorsFile, name: str, start: int = 0, rows: int | None = None) -> np.ndarray:
    shape = file.tensors[name].shape
    out = np.empty((shape[0] - start if rows is None else rows, *shape[1:]), np.float32)
    file.read_into(name, start, out)
    return out


def write_raw(path: Path, header: Any, data: bytes, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_every_float_type_is_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.randn(7, 5).to(dtype), "b": torch.randn(3).to(dtype), "empty": torch.zeros(0, 4, dtype=dtype)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read(file, name), tensor.float().numpy())


@settings(max_examples=25, deadline=None)
@given(start=st.integers(0, 40), rows=st.integers(0, 41), chunk=st.sampled_from([1, 7, 64, 1 << 18]))
def test_rows_are_the_same_whatever_the_chunk(
    tmp_path_factory: pytest.TempPathFactory, start: int, rows: int, chunk: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.safetensors"
    if not path.exists():
        save_file({"x": torch.arange(41 * 9).reshape(41, 9).bfloat16()}, path)
    rows = min(rows, 41 - start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_file, "CHUNK_VALUES", chunk)
        got = read(SafetensorsFile(path), "x", start, rows)
    expected = torch.arange(41 * 9).reshape(41, 9).bfloat16().float().numpy()[start : start + rows]
    np.testing.assert_array_equal(got, expected)


def test_rows_read_no_more_than_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"x": torch.randn(1000, 16).half()}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    sizes: list[int] = []

    def counted(path: Path, offset: int, out: np.ndarray) -> None:
        sizes.append(out.nbytes)
        tensor_bytes.read_bytes(path, offset, out)

    monkeypatch.setattr(safetensors_file, "read_bytes", counted)
    read(file, "x", 10, 3)
    assert sum(sizes) == 3 * 16 * 2


def test_threads_read_at_once(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((64, 64), float(i)) for i in range(32)}
    save_file(tensors, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    with ThreadPoolExecutor(4) as pool:
        for i, got in enumerate(pool.map(lambda i: read(file, f"t{i}"), range(32))):
            assert (got == i).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_not_finite_is_refused_by_name(tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
    tensor = torch.randn(20, 20).to(dtype)
    tensor[13, 7] = bad
    save_file({"model.norm.weight": tensor}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match=r"model\.norm\.weight holds NaN or infinite"):
        read(file, "model.norm.weight")
    read(file, "model.norm.weight", 0, 13)  # the rows before it are fine


def test_huge_finite_values_are_not_taken_for_infinite(tmp_path: Path) -> None:
    tensor = torch.full((4, 4), 3e38)
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    np.testing.assert_array_equal(read(SafetensorsFile(tmp_path / "x.safetensors"), "x"), tensor.numpy())


def test_a_float64_beyond_float32_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.full((2,), 1e300, dtype=torch.float64)}, tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match="infinite"):
        read(SafetensorsFile(tmp_path / "x.safetensors"), "x")


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("F32", [1, 2], 8, 16)}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (GOOD, bytes(12), r"truncated: expected \d+ bytes, got"),
        (GOOD, bytes(20), r"damaged: expected \d+ bytes, got"),
        ({"a": entry("F32", [2], 4, 12)}, bytes(12), "a starts at byte"),
        ({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12), "b starts at byte"),
        ({"a": entry("F32", [3], 0, 8)}, bytes(8), r"a of shape \[3\] in F32 takes 12 bytes, not 8"),
        ({"a": entry("F32", [-1], 0, 8)}, bytes(8), "entry for 'a' makes no sense"),
        ({"a": {"dtype": "F32"}}, b"", "entry for 'a' makes no sense"),
        ({"a": 3}, b"", "entry for 'a' makes no sense"),
        ([], b"", "not a JSON object"),
        (b"{not json", b"", "not JSON"),
        (b"\xff\xfe{}", b"", "not JSON"),
    ],
)
def test_a_damaged_file_is_refused_when_it_is_opened(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        SafetensorsFile(write_raw(tmp_path / "x.safetensors", header, data))


def test_a_header_of_a_million_tensors_or_an_endless_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    with pytest.raises(SourceError, match="holds 100001 tensors, more than the limit"):
        SafetensorsFile(write_raw(path, {str(i): entry for i in range(100_001)}, b""))
    with pytest.raises(SourceError, match="has 1000000 characters, the limit is 1024") as raised:
        SafetensorsFile(write_raw(path, {"x" * 1_000_000: entry}, b""))
    assert len(str(raised.value)) < 300
    with pytest.raises(SourceError, match="not JSON"):
        SafetensorsFile(write_raw(path, b"[" * 200_000, b""))


def test_what_is_not_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        SafetensorsFile(path)
    path.write_bytes(b"abc")
    with pytest.raises(SourceError, match="it has 3 bytes"):
        SafetensorsFile(path)
    path.write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(SourceError, match=r"truncated|would have a header"):
        SafetensorsFile(path)
    with pytest.raises(SourceError, match="truncated: its header ends at byte 1008"):
        SafetensorsFile(write_raw(path, GOOD, b"", length=1000))


def test_a_file_cut_after_it_was_opened_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.randn(100, 100)}, path)
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(SourceError, match=r"is truncated: \d+ bytes expected at offset"):
        read(file, "x")
