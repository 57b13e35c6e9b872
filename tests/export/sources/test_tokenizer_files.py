import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs.errors import SourceError
from phi3_onnx.export.sources.tokenizer_files import check_tokenizer, portable_config, read_tokenizer_files
from tokenizers import Tokenizer
from transformers import AutoTokenizer

BYTE_LEVEL = {"pre_tokenizer": {"type": "ByteLevel"}, "decoder": {"type": "ByteLevel"}}
SENTENCEPIECE = {"pre_tokenizer": None, "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]}}


@pytest.fixture
def folder(tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("plain"), tmp_path / "model"))


def set_config(folder: Path, **values: Any) -> bytes:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path.read_bytes()


def test_files_are_returned_as_they_lie(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_bytes(b'{ "eos_token":"<|endoftext|>"}\r\n')
    (folder / "modeling_phi3.py").write_text("raise SystemExit")
    files = read_tokenizer_files(folder)
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"}
    assert set(files) == names
    for name, data in files.items():
        assert data == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("declared", "tokenizer", "expected"),
    [
        ("LlamaTokenizer", SENTENCEPIECE, "LlamaTokenizer"),
        ("LlamaTokenizerFast", SENTENCEPIECE, "LlamaTokenizerFast"),
        ("GPT2Tokenizer", BYTE_LEVEL, "GPT2Tokenizer"),
        ("PreTrainedTokenizerFast", BYTE_LEVEL, "PreTrainedTokenizerFast"),
        # transformers 5 writes this for any tokenizer; old clients do not know it.
        ("TokenizersBackend", SENTENCEPIECE, "LlamaTokenizer"),
        ("TokenizersBackend", BYTE_LEVEL, "PreTrainedTokenizerFast"),
        (None, BYTE_LEVEL, "PreTrainedTokenizerFast"),
        # GenAI tokenizes byte-level BPE wrongly under this name.
        ("LlamaTokenizer", BYTE_LEVEL, "PreTrainedTokenizerFast"),
    ],
)
def test_the_class_is_changed_only_where_clients_need_it(
    declared: str | None, tokenizer: dict[str, Any], expected: str
) -> None:
    config = {"eos_token": "</s>"} | ({"tokenizer_class": declared} if declared else {})
    assert portable_config(config, tokenizer) == {"eos_token": "</s>", "tokenizer_class": expected}


def test_a_list_of_extra_tokens_gets_the_name_that_all_read() -> None:
    config = {"tokenizer_class": "GPT2Tokenizer", "extra_special_tokens": ["<|end|>"]}
    assert portable_config(config, BYTE_LEVEL) == {
        "tokenizer_class": "GPT2Tokenizer",
        "additional_special_tokens": ["<|end|>"],
    }


def test_a_tokenizer_that_transformers_saved_again_keeps_its_ids(folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|end|>"]})
    tokenizer.save_pretrained(saved)
    files = read_tokenizer_files(saved)
    for name, data in files.items():
        (saved / name).write_bytes(data)
    text = "<|user|>\nWhat is the capital of France?<|end|>"
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert AutoTokenizer.from_pretrained(saved).encode(text) == ids
    assert json.loads(files["tokenizer_config.json"])["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_template_inside_the_config_gets_its_own_file(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert "chat_template.jinja" not in read_tokenizer_files(folder)
    config = set_config(folder, chat_template="{{ messages }} ü")
    files = read_tokenizer_files(folder)
    assert files["chat_template.jinja"].decode() == "{{ messages }} ü"
    assert files["tokenizer_config.json"] == config
    set_config(folder, chat_template=[{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}])
    assert read_tokenizer_files(folder)["chat_template.jinja"] == b"d"
    set_config(folder, chat_template=None)
    (folder / "chat_template.json").write_text('{"chat_template": "j"}')
    assert read_tokenizer_files(folder)["chat_template.jinja"] == b"j"


def test_a_template_file_comes_before_all_others(folder: Path) -> None:
    set_config(folder, chat_template="other")
    assert read_tokenizer_files(folder)["chat_template.jinja"] == (folder / "chat_template.jinja").read_bytes()


def test_without_a_tokenizer_json(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"has no tokenizer\.json \(nor an older kind"):
        read_tokenizer_files(folder)
    (folder / "tokenizer.model").write_bytes(b"any")
    with pytest.raises(SourceError, match=r"tokenizer\.model alone does not say how text is split"):
        read_tokenizer_files(folder)


def test_damaged_files_are_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(SourceError, match=r"tokenizer_config\.json is not valid JSON"):
        read_tokenizer_files(folder)
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(SourceError, match=r"tokenizer\.json must hold a JSON object"):
        read_tokenizer_files(folder)


@pytest.mark.parametrize("table", [{}, {"model": {}}, {"model": {"vocab": 3}}, {"model": {"vocab": {"a": "b"}}}])
def test_a_tokenizer_json_of_something_else(table: Any) -> None:
    with pytest.raises(SourceError, match="is not a tokenizer's"):
        check_tokenizer({"tokenizer.json": json.dumps(table).encode()}, 10, "x")


def test_added_tokens_need_rows_too() -> None:
    table = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 10, "content": "b"}]}
    with pytest.raises(SourceError, match="token ids up to 10, but the model has 10 rows"):
        check_tokenizer({"tokenizer.json": json.dumps(table).encode()}, 10, "x")
