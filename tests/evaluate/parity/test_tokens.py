"""How a package reads text, held against Hugging Face's tokenizer."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs import ProviderError, SourceError
from phi3_onnx.evaluate.parity import corpus, tokens
from phi3_onnx.evaluate.parity.finding import Finding
from phi3_onnx.evaluate.parity.tokens import (
    compare_chat_template,
    compare_client_tokens,
    compare_end_tokens,
    compare_token_ids,
    hugging_face_tokenizer,
    render_reference,
)
from phi3_onnx.export import Checkpoint, export, open_checkpoint
from phi3_onnx.runtime.package import Package, open_package

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoint(tiny: Make) -> Checkpoint:
    return open_checkpoint(tiny("plain"))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Any:
    return hugging_face_tokenizer(checkpoint)


@pytest.fixture
def folder(tiny_package: Make, tmp_path: Path) -> Path:
    """A package without a manifest, whose files may be changed."""
    copy = tmp_path / "package"
    shutil.copytree(tiny_package("plain"), copy)
    (copy / "phi3_onnx.json").unlink()
    return copy


def edit(path: Path, change: Callable[[Any], object]) -> None:
    table = json.loads(path.read_text(encoding="utf-8"))
    change(table)
    path.write_text(json.dumps(table), encoding="utf-8")


def texts(tokenizer: Any) -> list[str]:
    return [*corpus.snippets(), *(render_reference(tokenizer, chat) for chat in corpus.chats())]


def check_ids(tokenizer: Any, folder: Path) -> Finding:
    return compare_token_ids(tokenizer, open_package(folder), texts(tokenizer))


def check_client(tokenizer: Any, folder: Path) -> tokens.Finding:
    return compare_client_tokens(tokenizer, open_package(folder), texts(tokenizer))


def test_every_text_is_read_alike_by_our_runtime_and_genai(tokenizer: Any, folder: Path) -> None:
    found = check_ids(tokenizer, folder)
    assert found.differences == ()
    assert found.share == 1
    assert found.compared >= 2 * 48  # with and without special tokens
    client = check_client(tokenizer, folder)
    assert (client.differences, client.compared >= 48) == ((), True)
    assert "onnxruntime-genai" in client.notes[-1]


def phi3_like_tokenizer() -> Any:
    """Return a tokenizer of Phi-3's kind: SentencePiece BPE with byte fallback, and added tokens that take spaces."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    spaces = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = spaces  # pyright: ignore[reportAttributeAccessIssue]
    trained.train_from_iterator(corpus.text().splitlines(), trainers.BpeTrainer(vocab_size=220, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {name: index for index, name in enumerate(dict.fromkeys(names))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = spaces  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "<|endoftext|>")])
    takes_spaces = ("</s>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, rstrip=True) for name in takes_spaces])
    return tokenizer


def test_a_tokenizer_of_phi3s_kind_is_read_alike(tiny: Make, tmp_path: Path) -> None:
    source = tmp_path / "phi3-like"
    shutil.copytree(tiny("plain"), source)
    tokenizer = phi3_like_tokenizer()
    assert tokenizer.get_vocab_size() <= 512
    tokenizer.save(str(source / "tokenizer.json"))
    edit(source / "tokenizer_config.json", lambda table: table.update(tokenizer_class="LlamaTokenizer", legacy=False))
    reference = hugging_face_tokenizer(open_checkpoint(source))
    # What makes this kind difficult: a newline after a special token is gone, characters unknown to it are bytes.
    assert reference("<|end|>\n<|user|>", add_special_tokens=False).input_ids == reference("<|end|><|user|>").input_ids
    assert len(reference("\U0001d518", add_special_tokens=False).input_ids) == 5
    package = export(source, "cpu-fp32", tmp_path / "package")
    found = compare_token_ids(reference, open_package(package), texts(reference))
    assert found.differences == ()
    assert compare_client_tokens(reference, open_package(package), texts(reference)).differences == ()


def test_a_moved_merge_is_found_by_both_readers(tokenizer: Any, folder: Path) -> None:
    # The first merges are the most frequent pairs: much of any text changes with them.
    edit(folder / "tokenizer.json", lambda table: table["model"]["merges"].reverse())
    found = check_ids(tokenizer, folder)
    assert found.share < 0.9
    assert any(line.startswith("phi3-onnx gives [") for line in found.differences)
    client = check_client(tokenizer, folder)
    assert any(line.startswith("onnxruntime-genai") and "Hugging Face [" in line for line in client.differences)


def test_a_lost_special_token_is_found_where_text_has_it(tokenizer: Any, folder: Path) -> None:
    def lose(table: Any) -> None:
        table["added_tokens"] = [token for token in table["added_tokens"] if token["content"] != "<|end|>"]

    edit(folder / "tokenizer.json", lose)
    found = check_ids(tokenizer, folder)
    assert any("<|end|>" in line for line in found.differences)


def test_special_tokens_around_a_text_are_compared(tiny: Make, tiny_package: Make, tmp_path: Path) -> None:
    source = tmp_path / "bos"
    shutil.copytree(tiny("plain"), source)
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    edit(source / "tokenizer.json", lambda table: table.update(post_processor=template))
    edit(source / "tokenizer_config.json", lambda table: table.pop("add_bos_token"))
    begins = hugging_face_tokenizer(open_checkpoint(source))
    assert begins("Hello").input_ids[0] == 0
    good = export(source, "cpu-fp32", tmp_path / "good")
    assert compare_token_ids(begins, open_package(good), ["Hello", ""]).differences == ()
    found = compare_token_ids(begins, open_package(tiny_package("plain")), ["Hello"])
    assert [line.split(" gives ")[0] for line in found.differences] == ["phi3-onnx with special tokens"]


def test_genais_reader_is_left_out_with_a_word_where_it_is_not_installed(
    tokenizer: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise ProviderError("onnxruntime_genai is not installed")

    monkeypatch.setattr(tokens, "import_genai", missing)
    found = check_client(tokenizer, folder)
    assert (found.compared, found.differences) == (0, ())
    assert "onnxruntime-genai is not installed, so its tokenizer was not compared" in found.notes


def test_a_tokenizer_that_does_not_load_is_a_difference(tokenizer: Any, folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda table: table["model"].update(type="Unheard"))
    found = check_ids(tokenizer, folder)
    assert any("cannot" in line for line in found.differences)
    assert found.share < 1


def check_template(tokenizer: Any, folder: Path) -> Finding:
    return compare_chat_template(tokenizer, open_package(folder), corpus.chats())


def test_templates_render_alike(tokenizer: Any, folder: Path) -> None:
    found = check_template(tokenizer, folder)
    assert (found.share, found.notes) == (1, ("10 conversations",))


def test_a_changed_template_is_shown_where_it_differs(tokenizer: Any, folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|end|>\\n", "<|end|>"))
    found = check_template(tokenizer, folder)
    assert found.share == 0
    assert "Hugging Face '\\n<|assistant|>\\n', after " in found.differences[0]


def test_a_template_that_refuses_what_the_other_takes_is_a_difference(tokenizer: Any, folder: Path) -> None:
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    path = folder / "chat_template.jinja"
    path.write_text(refuse + path.read_text())
    found = check_template(tokenizer, folder)
    systems = sum(chat[0]["role"] == "system" for chat in corpus.chats())
    assert len(found.differences) == systems > 0
    assert found.differences[0].startswith("the package refuses a conversation that Hugging Face renders")


def test_conversations_that_both_refuse_are_no_difference(tiny: Make, tmp_path: Path) -> None:
    source = tmp_path / "strict"
    shutil.copytree(tiny("plain"), source)
    path = source / "chat_template.jinja"
    path.write_text("{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}" + path.read_text())
    strict = hugging_face_tokenizer(open_checkpoint(source))
    found = check_template(strict, export(source, "cpu-fp32", tmp_path / "package"))
    assert found.differences == ()


def test_a_template_on_one_side_only(tokenizer: Any, folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert check_template(tokenizer, folder).differences == ("the checkpoint has a chat template, the package none",)


def test_models_without_a_template(tiny: Make, tmp_path: Path) -> None:
    source = tmp_path / "base"
    shutil.copytree(tiny("plain"), source)
    (source / "chat_template.jinja").unlink()
    base = hugging_face_tokenizer(open_checkpoint(source))
    package = export(source, "cpu-fp32", tmp_path / "package")
    assert check_template(base, package) == Finding(1, (), ("the model has no chat template",))


def end_tokens(checkpoint: Checkpoint, folder: Path) -> Finding:
    package: Package = open_package(folder)
    return compare_end_tokens(checkpoint, package)


def test_end_tokens_are_compared_in_both_files(checkpoint: Checkpoint, folder: Path) -> None:
    assert end_tokens(checkpoint, folder).differences == ()
    edit(folder / "genai_config.json", lambda table: table["model"].update(eos_token_id=[0, 5]))
    edit(folder / "generation_config.json", lambda table: table.update(eos_token_id=0))
    found = end_tokens(checkpoint, folder)
    assert found.differences == (
        "genai_config.json has [0, 5], the checkpoint [0, 4]",
        "generation_config.json has [0], the checkpoint [0, 4]",
    )
    assert found.share == 0


def test_a_missing_generation_config_is_not_compared(checkpoint: Checkpoint, folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    found = end_tokens(checkpoint, folder)
    assert (found.compared, found.differences) == (1, ())


def test_a_tokenizer_that_transformers_can_not_load_is_the_sources_fault(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = {**checkpoint.assets(), "tokenizer.json": b"{}"}
    monkeypatch.setattr(checkpoint, "assets", lambda: assets)
    with pytest.raises(SourceError, match="transformers cannot load its tokenizer"):
        hugging_face_tokenizer(checkpoint)
