import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from phi3_onnx.configs.errors import SourceError
from phi3_onnx.export.sources.gguf.file import GgufFile, can_dequantize

# Types that the gguf package can both quantize and dequantize; the readable rest is checked with random blocks below.
WRITABLE = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
READABLE = [
    *WRITABLE, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS",
    "IQ3_S", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4",
]  # fmt: skip


def kind_of(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name]


def write(path: Path, tensors: dict[str, tuple[np.ndarray, str]], **metadata: str) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_string(key, value)
    writer.add_array("list.of.strings", ["a", "ü", ""])
    writer.add_array("list.of.numbers", [1.5, -2.0])
    writer.add_bool("a.bool", False)
    for name, (values, kind) in tensors.items():
        writer.add_tensor(name, gguf.quantize(values, kind_of(kind)), raw_dtype=kind_of(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


def read(file: GgufFile, name: str, start: int = 0, rows: int | None = None) -> np.ndarray:
    shape = file.tensors[name].shape
    out = np.empty((shape[0] - start if rows is None else rows, *shape[1:]), np.float32)
    file.read_into(name, start, out)
    return out


def test_metadata(tmp_path: Path) -> None:
    file = GgufFile(write(tmp_path / "x.gguf", {"a": (weights(2, 32), "F32")}, key="välue"))
    assert file.metadata == {
        "general.architecture": "llama",
        "key": "välue",
        "list.of.strings": ["a", "ü", ""],
        "list.of.numbers": [1.5, -2.0],
        "a.bool": False,
    }


@pytest.mark.parametrize("kind", WRITABLE)
def test_weights_are_those_of_the_gguf_package(tmp_path: Path, kind: str) -> None:
    values = weights(600, 64)
    norm = weights(1, 64)[0]
    path = write(tmp_path / "x.gguf", {"norm": (norm, "F32"), "m": (values, kind), "n": (values[:3], "F16")})
    file = GgufFile(path)
    expected = gguf.dequantize(gguf.quantize(values, kind_of(kind)), kind_of(kind))
    np.testing.assert_array_equal(read(file, "m"), expected)
    np.testing.assert_array_equal(read(file, "m", 17, 500), expected[17:517])
    np.testing.assert_array_equal(read(file, "norm"), norm)
    np.testing.assert_array_equal(read(file, "norm", 3, 9), norm[3:12])
    assert {tensor.name: tuple(int(n) for n in tensor.shape[::-1]) for tensor in gguf.GGUFReader(path).tensors} == {
        name: tensor.shape for name, tensor in file.tensors.items()
    }


@pytest.mark.parametrize("kind", READABLE)
def test_every_type_of_the_gguf_package_can_be_read(tmp_path: Path, kind: str) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind_of(kind)]
    raw = np.random.default_rng(1).integers(0, 48, (5, 512 // block * size), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("m", raw, raw_dtype=kind_of(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "x.gguf")
    assert file.tensors["m"].shape == (5, 512)
    np.testing.assert_array_equal(read(file, "m", 1, 3), gguf.dequantize(raw, kind_of(kind))[1:4])


def test_types_without_floats_are_told_apart() -> None:
    assert all(can_dequantize(kind_of(kind)) for kind in READABLE)
    assert not any(can_dequantize(kind_of(kind)) for kind in ("I8", "I32", "Q8_K"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    return write(path, {"a": (weights(4, 32), "F32"), "b": (weights(3, 64), "Q4_0")}, key="value").read_bytes()


def test_a_file_cut_anywhere_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    end = len(whole) - (-(3 * 64 // 32 * 18) % 32)  # the last tensor's padding is no loss
    for size in range(end):
        path.write_bytes(whole[:size])
        with pytest.raises(SourceError, match=r"truncated|not a GGUF file") as caught:
            GgufFile(path)
        assert "\n" not in str(caught.value)


def test_the_message_of_a_truncated_file_has_both_sizes(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(whole[:-100])
    with pytest.raises(SourceError, match=rf"is truncated: expected \d+ bytes, got {len(whole) - 100}"):
        GgufFile(path)


def test_changed_bytes_give_an_error_or_a_file_but_never_a_traceback(whole: bytes, tmp_path: Path) -> None:
    path, dice = tmp_path / "x.gguf", random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(dice.choice([1, 1, 4])):
            data[dice.randrange(len(data))] = dice.choice([0, 1, 4, 8, 9, 0x7F, 0xFF, dice.randrange(256)])
        path.write_bytes(data)
        try:
            file = GgufFile(path)
            for name, tensor in file.tensors.items():
                if can_dequantize(tensor.type) and 0 < tensor.size < 1e6:
                    read(file, name)
        except SourceError:
            continue


@pytest.mark.parametrize(
    ("version", "message"),
    [(1, "of version 1"), (9, "of version 9"), (3 << 24, r"big-endian \(version 3\)")],
)
def test_other_versions_are_refused(whole: bytes, tmp_path: Path, version: int, message: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(whole[:4] + struct.pack("<I", version) + whole[8:])
    with pytest.raises(SourceError, match=message):
        GgufFile(path)


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read: No such file"):
        GgufFile(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(SourceError, match="is not a GGUF file: it starts with"):
        GgufFile(tmp_path / "x.gguf")


def test_an_unknown_weight_type_is_named(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    entry = struct.pack("<Q", 1) + b"b" + struct.pack("<IQQ", 2, 64, 3)
    place = whole.index(entry) + len(entry)
    path.write_bytes(whole[:place] + struct.pack("<I", 77) + whole[place + 4 :])
    with pytest.raises(SourceError, match="tensor 'b' is of weight type 77"):
        GgufFile(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = weights(4, 32)
    values[2, 3] = np.nan
    file = GgufFile(write(tmp_path / "x.gguf", {"blk.0.attn_q.weight": (values, "F16")}))
    with pytest.raises(SourceError, match=r"tensor blk\.0\.attn_q\.weight holds NaN"):
        read(file, "blk.0.attn_q.weight")
