import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phi3_onnx.configs import PackageError
from phi3_onnx.runtime.text.tokenizer import Tokenizer
from scripted import SPECIAL_TOKENS, write_scripted_package

TEXTS = (
    "Hello, world!",
    "  two leading spaces, and\n\n newlines \n",
    "naïve café 東京 🙂👍🏽 \u200d zero width",
    "def f(x):\n\treturn x ** 2  # tab",
    "<|user|>\nHi<|end|>\n<|assistant|>\n",
    "written out: <|end|> in the middle, and <|extra|> or <|more|>",
    "",
)


def sentencepiece_like(folder, *, rstrip=False, config=None):
    """Write a tokenizer of Phi-3's kind: BPE over SentencePiece's marks with byte fallback, and added tokens."""
    from tokenizers import AddedToken, decoders, models, normalizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(["the quick brown fox", "hello world, hello you", "def return user"] * 3, trainer)
    table = json.loads(backend.to_str())
    table["added_tokens"] = [token for token in table["added_tokens"] if not token["content"].startswith("<0x")]
    backend = Backend.from_str(json.dumps(table))
    backend.add_special_tokens([AddedToken(token, rstrip=rstrip, special=True) for token in SPECIAL_TOKENS])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**base, **(config or {})}), encoding="utf-8")
    return folder


def reference(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def assert_same_ids(folder):
    ours, theirs = Tokenizer(folder), reference(folder)
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"], text
        assert ours.encode(text, special=False) == theirs(text, add_special_tokens=False)["input_ids"], text
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


@pytest.mark.parametrize("kind", ["plain", "llama"])
def test_ids_of_a_byte_level_tokenizer_are_hugging_faces(tiny, kind):
    assert_same_ids(tiny(kind))


@pytest.mark.parametrize("rstrip", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": False},
        {"add_bos_token": True, "add_eos_token": True},
        {"pad_token": "<|extra|>"},
        {"additional_special_tokens": ["<|more|>", "<|user|>"]},
    ],
    ids=["silent", "bos", "no-bos", "bos-eos", "new-token", "new-extra"],
)
def test_ids_of_a_sentencepiece_tokenizer_are_hugging_faces(tmp_path, rstrip, config):
    assert_same_ids(sentencepiece_like(tmp_path / "tokenizer", rstrip=rstrip, config=config))


def test_the_configs_list_of_added_tokens_wins(tmp_path):
    # As in Phi-3's own files, whose tokenizer_config.json says `rstrip` where an older tokenizer.json does not.
    folder = sentencepiece_like(tmp_path / "tokenizer")
    end = Tokenizer(folder).encode("<|end|>", special=False)[-1]
    entry = {"content": "<|end|>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(end): {**entry, "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer(folder).encode("<|end|> \n x", special=False) != [
        *Tokenizer(folder).encode("<|end|>", special=False),
        *Tokenizer(folder).encode(" \n x", special=False),
    ]
    assert_same_ids(folder)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    write_scripted_package(root / "bytes")
    return Tokenizer(root / "bytes"), Tokenizer(sentencepiece_like(root / "pieces"))


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40), kind=st.sampled_from([0, 1]))
def test_streamed_pieces_are_the_text_of_all_tokens(tokenizers, text, kind):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text, special=False)
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    # U+FFFD in a piece means a character cut in two, unless the text has one itself.
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


def test_special_tokens_are_left_out_of_a_stream_and_keep_the_space_after_them(tokenizers):
    tokenizer = tokenizers[1]
    ids = [*tokenizer.encode("hello", special=False), *tokenizer.encode("<|end|>", special=False)[-1:]]
    ids += tokenizer.encode("world", special=False)
    stream = tokenizer.stream()
    assert "".join(stream.push(token) for token in ids) == tokenizer.decode(ids) == "hello world"


def test_an_unfinished_character_comes_out_at_the_end(tokenizers):
    tokenizer = tokenizers[0]
    ids = tokenizer.encode("🙂", special=False)
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.flush() == "\ufffd"


def test_one_token_as_text(tokenizers):
    tokenizer = tokenizers[0]
    assert tokenizer.token_text(tokenizer.encode("<|end|>", special=False)[0]) == "<|end|>"


def test_a_damaged_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PackageError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        Tokenizer(tmp_path)
