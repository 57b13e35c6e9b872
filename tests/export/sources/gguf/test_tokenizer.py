import io
import json
from pathlib import Path
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from phi3_onnx.configs.errors import SourceError
from phi3_onnx.export.sources.gguf.tokenizer import PRE_TOKENIZERS, GgufTokenizer, sentencepiece_merges
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "What is the capital of France? The capital of France is Paris.",
    "def add(a, b):\n    return a + b  # 12345",
    "Übung macht den Meister; das Café ist zu. 日本語のテキスト",
]
TEXTS = [
    "Hello world",
    " one",
    "  two",
    "   three",
    "What is the capital of France?",
    "line\n\n\nline\n",
    "\n",
    "a\r\nb\tc",
    "def f(x):\n    return x**2 + 10000  # 12345",
    "Ünïcödé ßtraße",
    "日本語 한국어 текст",
    "emoji 😀👩\u200d👩\u200d👧 done",
    "I'm WE'LL don't",
    "a  b   c    d     e",
    "trailing   ",
    "e\u0301",
    "",
    " ",
    "<|user|>\nHi there<|end|>\n<|assistant|>\n",
    "in text <|end|>  and <|endoftext|>\n after",
    "<|system|>\nBe\n\nkind.<|end|>\n<|user|>\n  two\n<|end|>\n",
    "<s>x</s> y",
]
SPECIAL = ["<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]


@pytest.fixture(scope="module")
def pieces() -> Any:
    """A small SentencePiece BPE model with byte fallback: Phi-3's kind of tokenizer."""
    spm = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        minloglevel=2,
    )
    return spm.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def phi3_metadata(pieces) -> dict[str, Any]:
    count = pieces.vocab_size()
    tokens = [pieces.id_to_piece(i) for i in range(count)]
    kinds = [
        2 if pieces.is_unknown(i) else 3 if pieces.is_control(i) else 6 if pieces.is_byte(i) else 1
        for i in range(count)
    ]
    return {
        "general.architecture": "phi3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*tokens, *SPECIAL, "</s2>", f"[PAD{count + 6}]"],
        "tokenizer.ggml.scores": [*(pieces.get_score(i) for i in range(count)), *[-1000.0] * 7],
        "tokenizer.ggml.token_type": [*kinds, *[3] * 5, 4, 5],
        "tokenizer.ggml.eos_token_id": count,
        "tokenizer.ggml.padding_token_id": count,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0].content }}<|end|>",
    }


@pytest.fixture(scope="module")
def bpe_metadata(tiny) -> dict[str, Any]:
    table = json.loads((tiny("plain") / "tokenizer.json").read_text())
    tokens = {i: token for token, i in table["model"]["vocab"].items()}
    tokens |= {token["id"]: token["content"] for token in table["added_tokens"]}
    special = {token["id"] for token in table["added_tokens"]}
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [tokens[i] for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [3 if i in special else 1 for i in range(len(tokens))],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in table["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }


def tokenizer_of(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(GgufTokenizer(metadata, "x").files(4096)["tokenizer.json"].decode())


def write_files(metadata: dict[str, Any], folder: Path) -> Path:
    """Write the files as a package has them; its config.json is always Phi-3's."""
    for name, data in GgufTokenizer(metadata, "x").files(4096).items():
        (folder / name).write_bytes(data)
    (folder / "config.json").write_text('{"model_type": "phi3"}')
    return folder


def ids(tokenizer: Tokenizer, text: str, *, special: bool = False) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=special).ids


def spelled(tokenizer: Tokenizer, text: str) -> str:
    """Return the tokens of a text, as the vocabulary spells them (an encoding's own `tokens` are cut from the text)."""
    return "".join(str(tokenizer.id_to_token(i)) for i in ids(tokenizer, text))


class TestSentencePiece:
    @settings(max_examples=300, deadline=None)
    @given(text=st.text(st.characters(exclude_characters="\0▁", exclude_categories=["Cs"]), max_size=40))
    def test_ids_are_those_of_sentencepiece(self, pieces, phi3_metadata, text: str) -> None:
        expected = [] if not text else pieces.encode(text)
        assert ids(tokenizer_of(phi3_metadata), text) == expected

    def test_pieces_of_training_text(self, pieces, phi3_metadata) -> None:
        tokenizer = tokenizer_of(phi3_metadata)
        for sentence in SENTENCES:
            got = ids(tokenizer, sentence)
            assert got == pieces.encode(sentence)
            assert len(got) < len(sentence)  # merges do happen
            assert tokenizer.decode(got) == sentence

    def test_added_tokens_swallow_the_space_behind_them_and_text_gets_one_in_front(self, phi3_metadata) -> None:
        tokenizer = tokenizer_of(phi3_metadata)
        assert spelled(tokenizer, "<|user|>\nthe<|end|>\n<|endoftext|>\nthe") == (
            "<|user|>▁the<|end|><|endoftext|>▁\nthe"
        )

    def test_flags_of_added_tokens(self, phi3_metadata) -> None:
        table = json.loads(tokenizer_of(phi3_metadata).to_str())
        flags = {t["content"]: (t["rstrip"], t["special"], t["normalized"]) for t in table["added_tokens"]}
        assert flags == {
            "<unk>": (False, True, False),
            "<s>": (False, True, False),
            "</s>": (True, True, False),
            "<|endoftext|>": (False, True, False),
            **dict.fromkeys(["<|assistant|>", "<|system|>", "<|end|>", "<|user|>"], (True, True, False)),
            "</s2>": (True, False, False),
        }
        assert not any(token.startswith("[PAD") for token in table["model"]["vocab"])

    def test_llama_files_keep_the_space_behind_added_tokens(self, phi3_metadata) -> None:
        tokenizer = tokenizer_of(phi3_metadata | {"general.architecture": "llama"})
        assert spelled(tokenizer, "<|end|>\nthe") == "<|end|>▁\nthe"

    def test_without_a_space_in_front(self, phi3_metadata) -> None:
        tokenizer = tokenizer_of(phi3_metadata | {"tokenizer.ggml.add_space_prefix": False})
        assert spelled(tokenizer, "the dog") == "the▁dog"
        assert tokenizer.decode(ids(tokenizer, " the dog")) == " the dog"

    def test_the_class_is_the_one_that_old_clients_need(self, phi3_metadata) -> None:
        config = json.loads(GgufTokenizer(phi3_metadata, "x").files(4096)["tokenizer_config.json"])
        assert config["tokenizer_class"] == "LlamaTokenizer"
        assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "<|endoftext|>", "<unk>")
        assert config["model_max_length"] == 4096

    def test_merges_go_by_score_and_then_by_the_ids_of_the_pair(self) -> None:
        pieces = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5, "ba": 6}
        scores = [0.0, 0.0, 0.0, -1.0, -2.0, -0.5, -2.0]
        assert sentencepiece_merges(pieces, scores) == ["a bc", "ab c", "a b", "b a", "b c"]


class TestByteLevel:
    def test_ids_are_those_of_the_tokenizer_it_was_made_of(self, tiny, bpe_metadata) -> None:
        original = Tokenizer.from_file(str(tiny("plain") / "tokenizer.json"))
        rebuilt = tokenizer_of(bpe_metadata | {"tokenizer.ggml.pre": "gpt-2"})
        for text in TEXTS:
            assert ids(rebuilt, text) == ids(original, text)
            assert rebuilt.decode(ids(rebuilt, text)) == original.decode(ids(original, text))

    def test_the_class_reads_tokenizer_json_as_it_is(self, bpe_metadata) -> None:
        config = json.loads(GgufTokenizer(bpe_metadata, "x").files(8)["tokenizer_config.json"])
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert "unk_token" not in config
        assert "pad_token" not in config

    @settings(max_examples=300, deadline=None)
    @given(text=st.text(max_size=30) | st.text(alphabet="ab 1٣½²\n'", max_size=20))
    def test_smollm_is_digits_and_byte_level(self, text: str) -> None:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        expected = pre_tokenizers.Sequence(steps).pre_tokenize_str(text)
        assert pre_tokenizer("smollm").pre_tokenize_str(text) == expected

    @pytest.mark.parametrize("name", ["llama-bpe", "gpt-4o", "tekken"])
    @settings(max_examples=200, deadline=None)
    @given(text=st.text(alphabet="aBcÉßЖ日 1٣\n\r\t'.,!sTlL_/\u0301", max_size=25))
    def test_regexes_split_as_an_engine_of_its_own_does(self, name: str, text: str) -> None:
        step = PRE_TOKENIZERS[name].json
        assert step is not None
        pattern = step["pretokenizers"][0]["pattern"]["Regex"]
        spans = [span for _, span in pre_tokenizer(name).pre_tokenize_str(text)]
        assert spans == [match.span() for match in regex.finditer(pattern, text)]

    @pytest.mark.parametrize("name", ["llama-bpe", "tekken"])
    def test_whole_tokens_come_before_merges_where_the_model_has_it_so(self, bpe_metadata, name: str) -> None:
        table = json.loads(tokenizer_of(bpe_metadata | {"tokenizer.ggml.pre": name}).to_str())
        assert table["model"]["ignore_merges"] is True

    def test_files_that_do_not_say_how_text_is_split(self, bpe_metadata) -> None:
        for metadata in (bpe_metadata | {"tokenizer.ggml.pre": "default"}, without(bpe_metadata, "pre")):
            with pytest.raises(SourceError, match=r"does not say how its tokenizer splits text \(tokenizer\.ggml\.pre"):
                GgufTokenizer(metadata, "x")
        with pytest.raises(SourceError, match="pre-tokenizer 'viking' is not supported; supported: codeshell"):
            GgufTokenizer(bpe_metadata | {"tokenizer.ggml.pre": "viking"}, "x")


def pre_tokenizer(name: str) -> Any:
    tokenizer = Tokenizer(models.BPE())
    table = json.loads(tokenizer.to_str()) | {"pre_tokenizer": PRE_TOKENIZERS[name].json}
    return Tokenizer.from_str(json.dumps(table)).pre_tokenizer


def without(metadata: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name != f"tokenizer.ggml.{key}"}


@pytest.mark.parametrize(
    ("changes", "start", "end"),
    [
        ({"add_bos_token": True}, ["<|system|>"], []),
        ({"add_bos_token": True, "add_eos_token": True}, ["<|system|>"], ["<|endoftext|>"]),
        ({"pre": "llama-bpe"}, ["<|system|>"], []),
        ({"pre": "llama-bpe", "add_bos_token": False}, [], []),
        ({}, [], []),
    ],
)
def test_tokens_around_a_text(bpe_metadata, tmp_path: Path, changes: Any, start: list[str], end: list[str]) -> None:
    metadata = bpe_metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    assert tokenizer_of(metadata).encode("a").tokens == [*start, "a", *end]
    loaded = AutoTokenizer.from_pretrained(write_files(metadata, tmp_path))
    assert loaded.tokenize("a", add_special_tokens=True) == [*start, "a", *end]


def test_end_tokens(phi3_metadata, bpe_metadata) -> None:
    tokens = phi3_metadata["tokenizer.ggml.tokens"]
    tokenizer = GgufTokenizer(phi3_metadata, "x")
    assert [tokens[i] for i in tokenizer.end_token_ids()] == ["<|endoftext|>", "<|end|>"]
    no_template = without(phi3_metadata, "x") | {"tokenizer.chat_template": ""}
    assert [tokens[i] for i in GgufTokenizer(no_template, "x").end_token_ids()] == ["<|endoftext|>"]
    assert "chat_template.jinja" not in GgufTokenizer(no_template, "x").files(1)
    named = phi3_metadata | {"tokenizer.ggml.eot_token_id": tokens.index("<|assistant|>")}
    assert [tokens[i] for i in GgufTokenizer(named, "x").end_token_ids()] == [
        "<|endoftext|>",
        "<|assistant|>",
        "<|end|>",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "t5"}, "tokenizer 't5' is not supported; supported: gpt2, llama"),
        ({"model": 3}, "must be of type str, got int"),
        ({"tokens": None}, "must be of type list, got NoneType"),
        ({"tokens": ["a", "a"]}, r"token_type has \d+ values for 2 tokens"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "has 1 duplicates"),
        ({"eos_token_id": 100000}, "must be a token id below 512, got 100000"),
        ({"merges": None}, r"tokenizer\.ggml\.merges must be of type list"),
    ],
)
def test_metadata_that_makes_no_sense(bpe_metadata, changes: dict[str, Any], message: str) -> None:
    metadata = dict(bpe_metadata)
    for key, value in changes.items():
        metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(SourceError, match=message):
        GgufTokenizer(metadata, "x").files(1)


def test_scores_are_needed_for_sentencepiece(phi3_metadata) -> None:
    with pytest.raises(SourceError, match=r"tokenizer\.ggml\.scores must be of type list"):
        GgufTokenizer(without(phi3_metadata, "scores"), "x").files(1)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that GenAI loads as a model, with a graph that does nothing: GenAI has no tokenizer without a model."""
    import onnx
    from onnx import TensorProto, helper

    folder = tmp_path_factory.mktemp("genai")
    cache = [f"{{}}.0.{name}" for name in ("key", "value")]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", 1])]
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["as_float", "last"], ["logits"]),
    ]
    for name in cache:
        shape = ["b", 1, "p", 8]
        inputs.append(helper.make_tensor_value_info(name.format("past_key_values"), TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(name.format("present"), TensorProto.FLOAT, shape))
        nodes.append(helper.make_node("Identity", [name.format("past_key_values")], [name.format("present")]))
    last = helper.make_tensor("last", TensorProto.INT64, [1], [2])
    model = helper.make_model(
        helper.make_graph(nodes, "nothing", inputs, outputs, [last]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, folder / "model.onnx")
    sizes = {
        "head_size": 8,
        "hidden_size": 8,
        "num_attention_heads": 1,
        "num_hidden_layers": 1,
        "num_key_value_heads": 1,
    }
    decoder = {"filename": "model.onnx", "inputs": {}, "outputs": {}, **sizes}
    names = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "type": "phi3", "vocab_size": 1}
    config = {"model": {**names, "context_length": 64, "decoder": decoder}, "search": {"max_length": 64}}
    (folder / "genai_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", ["phi3", "smollm", "gpt-2", "llama-bpe", "dbrx", "gpt-4o", "tekken"])
def test_every_client_gives_the_same_ids(graph: Path, phi3_metadata, bpe_metadata, kind: str) -> None:
    og = pytest.importorskip("onnxruntime_genai")
    metadata = phi3_metadata if kind == "phi3" else bpe_metadata | {"tokenizer.ggml.pre": kind}
    write_files(metadata | {"tokenizer.ggml.add_bos_token": False}, graph)
    reference = Tokenizer.from_file(str(graph / "tokenizer.json"))
    hugging_face = AutoTokenizer.from_pretrained(graph, trust_remote_code=False)
    genai = og.Tokenizer(og.Model(str(graph)))
    for text in TEXTS:
        expected = ids(reference, text)
        assert hugging_face.encode(text, add_special_tokens=False) == expected, text
        assert [int(i) for i in genai.encode(text)] == expected, text
