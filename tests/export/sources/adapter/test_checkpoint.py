"""Merged adapters against PEFT: every tensor of merge_and_unload, for each kind of adapter that people train."""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from phi3_onnx.configs import find_target, read_manifest
from phi3_onnx.configs.errors import SourceError
from phi3_onnx.export import Checkpoint, export, open_checkpoint
from phi3_onnx.runtime.engines.session import open_session
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's advice on tied weights

WEIGHTS = "adapter_model.safetensors"
ALL = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
SPLIT = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "o_proj", "down_proj"]
ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "fused": ("plain", {"target_modules": ALL}),
    "one module": ("plain", {"target_modules": ["qkv_proj"]}),
    "all-linear": ("gqa", {"target_modules": "all-linear"}),
    "expression": ("plain", {"target_modules": r".*\.1\.mlp\.(gate_up|down)_proj"}),
    "excluded": ("plain", {"target_modules": "all-linear", "exclude_modules": ["o_proj"]}),
    "layers": ("sharded", {"target_modules": ALL, "layers_to_transform": [0, 2]}),
    "layers pattern": ("plain", {"target_modules": ALL, "layers_to_transform": 1, "layers_pattern": "layers"}),
    "rank-stabilized": ("plain", {"target_modules": ALL, "use_rslora": True, "r": 8}),
    "patterns": (
        "plain",
        {
            "target_modules": ALL,
            "rank_pattern": {"down_proj": 2, r"layers\.1\.self_attn\.qkv_proj": 6},
            "alpha_pattern": {"mlp.gate_up_proj": 3, "o_proj": 40},
        },
    ),
    "rank-stabilized patterns": ("llama", {"target_modules": SPLIT, "use_rslora": True, "rank_pattern": {"k_proj": 7}}),
    "split": ("llama", {"target_modules": SPLIT}),
    "some of a fused tensor": ("llama", {"target_modules": ["k_proj", "up_proj"]}),
    "dora": ("plain", {"target_modules": ALL, "use_dora": True}),
    "split dora": ("llama", {"target_modules": ["q_proj", "v_proj", "gate_proj", "down_proj"], "use_dora": True}),
    "rank-stabilized dora": ("gqa", {"target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
    "head and embedding": ("plain", {"target_modules": ALL, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "norms": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm", "norm"]}),
    "whole module": ("plain", {"target_modules": ["o_proj"], "modules_to_save": ["down_proj"]}),
    "embedding": ("plain", {"target_modules": ["embed_tokens", "qkv_proj"]}),
    "low-rank head": ("plain", {"target_modules": ["lm_head", "qkv_proj"], "use_dora": True}),
    "tied embedding": ("tied", {"target_modules": ["embed_tokens", "o_proj"]}),
    "tied head": ("tied", {"target_modules": ["lm_head", "o_proj"]}),
    "tied whole embedding": ("tied", {"target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied together": (
        "tied",
        {"target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "tied together, low rank": ("tied", {"target_modules": ["embed_tokens", "o_proj"], "ensure_weight_tying": True}),
    "tokens": ("plain", {"target_modules": ["o_proj"], "trainable_token_indices": [70, 3, 200]}),
    "tokens of both": (
        "plain",
        {"target_modules": ["o_proj"], "trainable_token_indices": {"lm_head": [5], "embed_tokens": [9, 2]}},
    ),
    "tied tokens": ("tied", {"target_modules": ["o_proj"], "trainable_token_indices": [70, 3]}),
    "tied tokens named twice": (
        "tied",
        {"target_modules": ["o_proj"], "trainable_token_indices": {"embed_tokens": [7, 9], "lm_head": [7, 9]}},
    ),
    "tied tokens of the head": ("tied", {"target_modules": ["o_proj"], "trainable_token_indices": {"lm_head": [7]}}),
    "tied tokens apart": (
        "tied",
        {"target_modules": ["o_proj"], "trainable_token_indices": {"embed_tokens": [7, 9], "lm_head": [9]}},
    ),
    "embedding dora": ("plain", {"target_modules": ["embed_tokens", "qkv_proj"], "use_dora": True}),
    "tied embedding dora": ("tied", {"target_modules": ["embed_tokens", "o_proj"], "use_dora": True}),
    "gaussian": ("plain", {"target_modules": ["o_proj"], "init_lora_weights": "gaussian"}),
}

Make = Callable[[str], tuple[Path, Path]]


@pytest.fixture
def made(tiny, adapter_of) -> Make:
    """Return `made(name)`: the folders of a base and of its adapter in ADAPTERS."""

    def make(name: str) -> tuple[Path, Path]:
        kind, options = ADAPTERS[name]
        return tiny(kind), adapter_of(tiny(kind), **options)

    return make


def load_with_peft(base: Path, adapter: Path) -> Any:
    """Return PEFT's own model of both, in float32, not merged."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).eval()


def merged_by_peft(base: Path, adapter: Path, like: Checkpoint) -> dict[str, np.ndarray]:
    """Return the tensors of PEFT's merge in Phi-3's layout."""
    model = load_with_peft(base, adapter)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tokens = [module.token_adapter for module in (embedding, head) if hasattr(module, "token_adapter")]
    apart = tokens and not any(adapter.tied_adapter for adapter in tokens)
    if hasattr(embedding, "base_layer") or hasattr(head, "base_layer") or apart:
        # PEFT adds to a tied matrix in place, which would change the other module too, unlike the model that was
        # trained (and PEFT warns of it): untie them, as it advises.
        layer = getattr(getattr(embedding, "token_adapter", embedding), "base_layer", embedding)
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    state = {name: value.numpy() for name, value in model.merge_and_unload().state_dict().items()}
    joined = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    found: dict[str, np.ndarray] = {}
    for name in like.config.tensor_shapes():
        module = name.removesuffix(".weight").rpartition(".")[2]
        parts = [name] if name in state else [name.replace(module, part) for part in joined[module]]
        found[name] = np.concatenate([state[part] for part in parts])
    return found


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_tensor_is_what_peft_merges(made: Make, name: str) -> None:
    base, adapter = made(name)
    plain, merged = open_checkpoint(base), open_checkpoint(base, adapter=adapter)
    changed = 0
    for tensor, expected in merged_by_peft(base, adapter, merged).items():
        got = merged.read(tensor)
        assert (got.shape, got.dtype) == (expected.shape, np.float32)
        # Sums of up to 128 products of values around 1, in another order than PyTorch's.
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6, err_msg=tensor)
        if tensor in plain.config.tensor_shapes():
            changed += not np.array_equal(got, plain.read(tensor))
    assert changed > 0


@pytest.mark.parametrize(
    "name", ["fused", "split", "split dora", "head and embedding", "embedding", "tied head", "tokens", "embedding dora"]
)
def test_rows_are_those_of_the_whole(made: Make, name: str) -> None:
    base, adapter = made(name)
    merged = open_checkpoint(base, adapter=adapter)
    for tensor, shape in merged.config.tensor_shapes().items():
        whole = merged.read(tensor)
        # Across the borders of q, k and v (64, 96 and 128 rows of the Llama-like one), and nothing at all.
        for rows in (slice(3, 7), slice(60, 100), slice(shape[0] - 1, None), slice(5, 5)):
            np.testing.assert_allclose(merged.read(tensor, rows), whole[rows], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="slice of step 1"):
        merged.read("model.norm.weight", slice(0, 8, 2))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("dora", "model.layers.1.mlp.gate_up_proj.weight"), ("embedding dora", "model.embed_tokens.weight")],
)
def test_large_matrices_are_merged_in_pieces(
    made: Make, monkeypatch: pytest.MonkeyPatch, name: str, tensor: str
) -> None:
    base, adapter = made(name)
    expected = open_checkpoint(base, adapter=adapter).read(tensor)
    monkeypatch.setattr("phi3_onnx.export.sources.adapter.checkpoint.CHUNK_VALUES", 64 * 7)
    got = open_checkpoint(base, adapter=adapter).read(tensor)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_adapters_are_read_as_float32(tiny, adapter_of, dtype: str) -> None:
    base = tiny("plain")
    adapter = adapter_of(base, dtype=dtype, target_modules=ALL)
    merged, plain = open_checkpoint(base, adapter=adapter), open_checkpoint(base)
    stored = load_file(adapter / WEIGHTS)
    prefix = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    delta = 3.0 * stored[f"{prefix}B.weight"].float() @ stored[f"{prefix}A.weight"].float()
    name = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_allclose(merged.read(name), plain.read(name) + delta.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("base_kind", ["plain", "llama"])
def test_split_and_fused_layouts_go_together(tiny, adapter_of, tmp_path: Path, base_kind: str) -> None:
    """A Llama-like twin of a Phi-3 has the same numbers: an adapter of one fits the other."""
    sizes = {"num_key_value_heads": 4, "seed": 3}
    phi, llama = tiny("plain", **sizes), tmp_path / "twin"
    shutil.copytree(tiny("llama", **sizes), llama)
    checkpoint = open_checkpoint(phi)
    twin = load_file(llama / "model.safetensors")
    qkv = {"q_proj": (0, 64), "k_proj": (64, 128), "v_proj": (128, 192)}
    rows = {**qkv, "gate_proj": (0, 128), "up_proj": (128, 256)}
    for name in twin:
        module = name.removesuffix(".weight").rpartition(".")[2]
        fused = name.replace(module, "qkv_proj" if "self_attn" in name else "gate_up_proj") if module in rows else name
        start, stop = rows.get(module, (0, None))
        twin[name] = torch.from_numpy(checkpoint.read(fused)[start:stop].copy())
    save_file(twin, llama / "model.safetensors")
    own, other, modules = (phi, llama, ALL) if base_kind == "plain" else (llama, phi, ["q_proj", "up_proj"])
    adapter = adapter_of(own, target_modules=modules, use_dora=True)
    there, here = open_checkpoint(own, adapter=adapter), open_checkpoint(other, adapter=adapter)
    for name in there.config.tensor_shapes():
        np.testing.assert_array_equal(here.read(name), there.read(name))


@pytest.mark.parametrize("name", ["dora", "embedding dora", "tokens"])
def test_it_reads_the_same_in_another_process(made: Make, name: str) -> None:
    """Large models are written by several processes, which are sent the checkpoint."""
    base, adapter = made(name)
    merged = open_checkpoint(base, adapter=adapter)
    sent = pickle.loads(pickle.dumps(merged))
    assert sent.adapter == merged.adapter
    for name in merged.config.tensor_shapes():
        np.testing.assert_array_equal(sent.read(name), merged.read(name))


def test_an_adapter_on_an_unquantized_package(made: Make, tmp_path: Path) -> None:
    base, adapter = made("fused")
    package = export(base, "cpu-fp32", tmp_path / "package")
    merged = open_checkpoint(package, adapter=adapter)
    expected = open_checkpoint(base, adapter=adapter)
    for name in expected.config.tensor_shapes():
        np.testing.assert_array_equal(merged.read(name), expected.read(name))


@pytest.mark.parametrize(
    "name",
    [
        "fused",
        "split dora",
        "tied embedding",
        "tied together, low rank",
        "head and embedding",
        "tied tokens",
        "tied tokens apart",
        "embedding dora",
    ],
)
def test_the_package_answers_as_pefts_unmerged_model(made: Make, tmp_path: Path, name: str) -> None:
    base, adapter = made(name)
    package = export(base, "cpu-fp32", tmp_path / "package", adapter=adapter)
    ids = np.random.default_rng(0).integers(5, 512, 40)
    model = load_with_peft(base, adapter)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
        with model.disable_adapter():
            without = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    ((_, got),) = open_session(package, "cpu")[0].logits(ids)
    # Logits have a standard deviation of about 3; float32 sums in another order.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-3)
    assert np.abs(got - without).max() > 0.5
    manifest = read_manifest(package)
    assert manifest.adapter is not None
    assert manifest.adapter.path == str(adapter)
    assert manifest.adapter.sha256 == hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest()
    assert manifest.adapter.config_sha256 == hashlib.sha256((adapter / "adapter_config.json").read_bytes()).hexdigest()


def test_a_low_rank_change_of_a_tied_matrix_unties_it(made: Make) -> None:
    """PEFT's model, as it was trained, looks tokens up in one matrix and reads its answers off another."""
    base, adapter = made("tied embedding")
    merged = open_checkpoint(base, adapter=adapter)
    assert not merged.config.tie_embeddings
    np.testing.assert_array_equal(
        merged.read("lm_head.weight"), open_checkpoint(base).read("model.embed_tokens.weight")
    )
    for name in ("tied together", "tied together, low rank"):
        base, adapter = made(name)
        assert open_checkpoint(base, adapter=adapter).config.tie_embeddings


def test_what_it_says_of_itself(made: Make) -> None:
    base, adapter = made("patterns")
    merged = open_checkpoint(base, adapter=adapter)
    assert (merged.source, merged.revision, merged.model) == (str(base), None, "tiny-plain-my-lora")
    assert merged.origin == f"{base} with adapter {adapter}"
    assert merged.adapter is not None
    assert merged.adapter.summary == "LoRA, rank 2/4/6, 8 matrices"
    base, adapter = made("head and embedding")
    found = open_checkpoint(base, adapter=adapter).adapter
    assert found is not None
    assert found.summary == "LoRA, rank 4, 8 matrices; embed_tokens, lm_head replaced"


def test_the_tokenizer_of_a_fine_tune_comes_along(made: Make, copied: Callable[[str], Path]) -> None:
    base, _ = made("fused")
    adapter = copied("fused")
    plain = open_checkpoint(base)
    assert open_checkpoint(base, adapter=adapter).assets() == plain.assets()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter)
    edit_json(adapter / "tokenizer_config.json", chat_template="{{ messages }}", eos_token={"content": "<|user|>"})
    merged = open_checkpoint(base, adapter=adapter)
    assert merged.assets()["chat_template.jinja"] == b"{{ messages }}"
    assert plain.generation_config["eos_token_id"] == [0, 4]
    assert merged.generation_config["eos_token_id"] == [0, 4, 2]


def test_the_key_of_a_calibration_depends_on_the_adapter(made: Make, copied: Callable[[str], Path]) -> None:
    """A run that was killed must not go on with the layers of another fine-tune."""
    from phi3_onnx.export.weights.calibration_data import CalibrationOptions, _key, prepare_calibration

    base, _ = made("one module")
    adapter = copied("one module")
    options = CalibrationOptions(num_samples=2, sequence_length=16)
    target = find_target("cpu-int4-awq")

    def key(checkpoint: Checkpoint) -> str:
        assert target.quantization
        return _key(checkpoint, target, prepare_calibration(checkpoint, options, target.quantization))

    plain, first = key(open_checkpoint(base)), key(open_checkpoint(base, adapter=adapter))
    assert key(open_checkpoint(base, adapter=adapter)) == first
    edit_json(adapter / "adapter_config.json", lora_alpha=13)
    scaled = key(open_checkpoint(base, adapter=adapter))
    edit_json(adapter / "adapter_config.json", lora_alpha=12)
    edit_weights(adapter, lambda tensors: next(iter(tensors.values())).mul_(2))
    assert len({plain, first, scaled, key(open_checkpoint(base, adapter=adapter))}) == 4


@pytest.fixture
def copied(made: Make, tmp_path: Path) -> Callable[[str], Path]:
    """Return `copied(name)`: an adapter that a test may change."""
    return lambda name: Path(shutil.copytree(made(name)[1], tmp_path / "my-lora"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def message_of(base: Path, adapter: Path | str) -> str:
    with pytest.raises(SourceError) as caught:
        open_checkpoint(base, adapter=adapter)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, ["peft_type 'IA3' cannot be merged", "merge it with PEFT"]),
        ({"peft_type": None}, ["peft_type None cannot be merged"]),
        ({"bias": "all"}, ["bias='all' (Phi-3's layout has no biases)", "merge it with PEFT"]),
        ({"lora_bias": True}, ["lora_bias (Phi-3's layout has no biases)"]),
        ({"fan_in_fan_out": True}, ["fan_in_fan_out (its weights lie transposed"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["init_lora_weights='pissa_niter_4' (it changes the model's own"]),
        ({"init_lora_weights": "loftq"}, ["init_lora_weights='loftq'"]),
        ({"layer_replication": [[0, 1]]}, ["layer_replication (it repeats layers"]),
        ({"trainable_token_indices": [3]}, ["model.embed_tokens has no tensor of trainable_token_indices"]),
        ({"trainable_token_indices": [3, 3]}, ["trainable_token_indices must be lists of token ids, each once"]),
        ({"trainable_token_indices": [512]}, ["token 512 was trained, the model has 512: the vocabulary was resized"]),
        ({"alora_invocation_tokens": [3]}, ["alora_invocation_tokens"]),
        ({"use_qalora": True, "bias": "all"}, ["use_qalora (a variant of LoRA); bias='all'"]),
        ({"r": 0}, ["r must be a positive whole number, got 0"]),
        ({"lora_alpha": "x"}, ["lora_alpha must be a positive number, got 'x'"]),
        ({"rank_pattern": {"o_proj": 1.5}}, ["rank_pattern must be a positive whole number"]),
        ({"target_modules": 3}, ["target_modules must be a list of names, got 3"]),
        ({"target_modules": "(x"}, ["'(x' is not a regular expression"]),
        ({"layers_to_transform": "x"}, ["layers_to_transform must be a list of layer indices"]),
        ({"r": 5}, ["does not fit the model", "lora_A.weight has shape [4, 64], expected [5, 64]", "more problems"]),
        ({"target_modules": ["qkv_proj"]}, ["o_proj has an adapter, but is none of the target_modules"]),
        ({"target_modules": [*ALL, "lm_head"]}, ["no tensors for 1 of 9 target modules, such as lm_head"]),
        ({"target_modules": ["Wqkv"]}, ["target_modules ('Wqkv',) names no module of the model"]),
        ({"modules_to_save": ["lm_head"]}, ["no tensor for lm_head, one of modules_to_save"]),
        ({"use_dora": True}, ["model.layers.0.self_attn.qkv_proj has no lora_magnitude_vector"]),
    ],
)
def test_settings_that_can_not_be_merged(
    made: Make, copied: Callable[[str], Path], changes: dict[str, Any], words: list[str]
) -> None:
    adapter = copied("fused")
    edit_json(adapter / "adapter_config.json", **changes)
    message = message_of(made("fused")[0], adapter)
    assert str(adapter) in message
    for word in words:
        assert word in message


DOWN = "base_model.model.model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (f"{DOWN}.lora_A.weight", None, ["model.layers.1.mlp.down_proj has no lora_A"]),
        (f"{DOWN}.lora_A.weight", torch.zeros(4, 100), ["has shape [4, 100], expected [4, 128]"]),
        (f"{DOWN}.lora_B.weight", torch.zeros(64, 4, dtype=torch.int8), ["is stored as I8, expected floating point"]),
        (f"{DOWN}.lora_B.weight", torch.full((64, 4), torch.nan), [f"tensor {DOWN}.lora_B.weight holds NaN"]),
        (f"{DOWN}.lora_B.bias", torch.zeros(64), [f"{DOWN}.lora_B.bias has no place in Phi-3's layout"]),
        (f"{DOWN}.bias", torch.zeros(64), [f"{DOWN}.bias has no place in Phi-3's layout"]),
        (f"{DOWN}.ia3_l", torch.zeros(64), [f"{DOWN}.ia3_l has no place in Phi-3's layout"]),
        (f"{DOWN}.lora_magnitude_vector", torch.zeros(64), ["lora_magnitude_vector has no place beside lora_B"]),
        ("base_model.model.score.weight", torch.zeros(2, 64), ["score is not a module of the model"]),
        (
            "base_model.model.model.layers.7.mlp.down_proj.lora_A.weight",
            torch.zeros(4, 128),
            ["model.layers.7.mlp.down_proj is not a module of the model"],
        ),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            torch.zeros(4, 64),
            ["model.layers.0.self_attn.qkv_proj is not a module of the model"],
        ),
        (
            "base_model.model.model.embed_tokens.weight",
            torch.zeros(520, 64),
            ["has 520 tokens, the model 512: the vocabulary was resized", "merge it with PEFT"],
        ),
        (
            "base_model.model.model.embed_tokens.lora_embedding_A",
            torch.zeros(4, 520),
            ["has 520 tokens, the model 512: the vocabulary was resized"],
        ),
    ],
)
def test_tensors_that_do_not_fit(
    made: Make, copied: Callable[[str], Path], name: str, value: torch.Tensor | None, words: list[str]
) -> None:
    adapter = copied("fused")
    edit_weights(adapter, lambda tensors: tensors.pop(name) if value is None else tensors.update({name: value}))
    message = message_of(made("fused")[0], adapter)
    assert str(adapter) in message
    for word in words:
        assert word in message


def test_an_adapter_of_a_larger_model(made: Make, tiny) -> None:
    message = message_of(tiny("gqa"), made("fused")[1])
    assert f"does not fit the model (made for {made('fused')[0]})" in message
    assert "has shape [4, 64], expected [4, 128]" in message


def test_dora_of_an_embedding_that_the_head_shares_is_refused(tiny, adapter_of) -> None:
    options = {"target_modules": ["embed_tokens", "o_proj"], "use_dora": True, "ensure_weight_tying": True}
    adapter = adapter_of(tiny("tied"), **options)
    assert "DoRA of model.embed_tokens has other norms than that of the head" in message_of(tiny("tied"), adapter)


def test_tokens_that_do_not_fit(made: Make, copied: Callable[[str], Path]) -> None:
    base, _ = made("tokens")
    adapter = copied("tokens")
    settings = adapter / "adapter_config.json"
    edit_json(settings, trainable_token_indices=[70, 3])
    assert "trainable_tokens_delta has shape [3, 64], expected [2, 64]" in message_of(base, adapter)
    edit_json(settings, trainable_token_indices={"embed_tokens": [70, 3, 200], "norm": [64]})
    assert "model.norm has no tensor of trainable_token_indices" in message_of(base, adapter)
    edit_json(settings, trainable_token_indices=None)
    assert "model.embed_tokens has a tensor of tokens, but is none of" in message_of(base, adapter)
    edit_json(settings, trainable_token_indices=[70, 3, 200])
    whole = torch.zeros(512, 64)
    edit_weights(adapter, lambda tensors: tensors.update({"base_model.model.model.embed_tokens.weight": whole}))
    assert "model.embed_tokens was trained in two ways; merge it with PEFT" in message_of(base, adapter)


def test_tokens_of_a_tied_embedding_and_a_head_of_its_own_are_refused(made: Make, copied) -> None:
    base, _ = made("tied tokens")
    adapter = copied("tied tokens")
    edit_json(adapter / "adapter_config.json", modules_to_save=["lm_head"])
    head = {"base_model.model.lm_head.weight": torch.zeros(512, 64)}
    edit_weights(adapter, lambda tensors: tensors.update(head))
    assert "tokens of the tied model.embed_tokens and more of lm_head were trained" in message_of(base, adapter)


def test_a_row_of_zeros_has_no_direction(made: Make, copied: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = copied("dora")
    base = Path(shutil.copytree(made("dora")[0], tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.o_proj.weight"][3] = 0
    save_file(tensors, base / "model.safetensors")
    edit_weights(adapter, lambda t: t["base_model.model.model.layers.0.self_attn.o_proj.lora_B.weight"][3].zero_())
    merged = open_checkpoint(base, adapter=adapter)
    with pytest.raises(SourceError, match=r"o_proj\.lora_magnitude_vector, divided by the norm of its row, holds NaN"):
        merged.read("model.layers.0.self_attn.o_proj.weight")


def test_folders_that_are_no_adapter(made: Make, copied: Callable[[str], Path], tmp_path: Path) -> None:
    base, _ = made("fused")
    adapter = copied("fused")
    assert f"{base} is a model of its own, not an adapter" in message_of(base, base)
    assert "the adapter ./nothing does not exist" in message_of(base, "./nothing")
    (tmp_path / "empty").mkdir()
    assert "empty is not an adapter: it has no adapter_config.json" in message_of(base, tmp_path / "empty")
    assert f"its newest adapter is {adapter}, name that" in message_of(base, tmp_path)
    assert "is a file; an adapter is a folder with" in message_of(base, adapter / WEIGHTS)
    content = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(content[:-8])
    assert "is truncated" in message_of(base, adapter)
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert "a pickle that can run code when it is loaded" in message_of(base, adapter)
    (adapter / "adapter_model.bin").unlink()
    assert "is incomplete: it has no adapter_model.safetensors" in message_of(base, adapter)
    (adapter / "adapter_config.json").write_text("[]")
    assert "must hold a JSON object" in message_of(base, adapter)


def test_an_empty_adapter(made: Make, copied: Callable[[str], Path]) -> None:
    adapter = copied("fused")
    edit_weights(adapter, dict.clear)
    assert "holds no adapter: none of its tensors is LoRA's" in message_of(made("fused")[0], adapter)


def test_a_tokenizer_with_more_tokens_than_rows(made: Make, copied: Callable[[str], Path], tiny) -> None:
    adapter = copied("fused")
    shutil.copy(tiny("plain", vocab_size=520) / "tokenizer.json", adapter)
    message = message_of(made("fused")[0], adapter)
    assert "has token ids up to 519, but the model has 512 rows" in message
    assert "if its vocabulary was resized" in message


def test_an_adapter_as_source_gives_the_command(made: Make) -> None:
    base, adapter = made("fused")
    with pytest.raises(SourceError) as caught:
        open_checkpoint(adapter)
    assert str(caught.value).endswith(f"phi3-onnx export {base} --adapter {adapter}")


class OnHub(Checkpoint):
    """A checkpoint that says it came from the hub."""

    def __init__(self, inner: Checkpoint, source: str) -> None:
        self.source, self.revision, self.model = source, "a" * 40, "model"
        self.config, self.generation_config = inner.config, inner.generation_config
        self._inner = inner

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        return self._inner.read(name, rows)

    def assets(self) -> Mapping[str, bytes]:
        return self._inner.assets()


def test_hub_ids_are_compared(made: Make, copied: Callable[[str], Path]) -> None:
    from phi3_onnx.export.sources.adapter.checkpoint import open_adapter

    base = open_checkpoint(made("fused")[0])
    adapter = copied("fused")
    settings = adapter / "adapter_config.json"
    trained_on = "microsoft/Phi-3-mini-4k-instruct"
    edit_json(settings, base_model_name_or_path=trained_on)
    with pytest.raises(SourceError, match=f"trained on {trained_on}, not on microsoft/Phi-3-mini-128k-instruct"):
        open_adapter(OnHub(base, "microsoft/Phi-3-mini-128k-instruct"), adapter)
    open_adapter(OnHub(base, trained_on), adapter)
    open_adapter(base, adapter)  # what a folder holds is not said by its name
    edit_json(settings, revision="b" * 40)
    with pytest.raises(SourceError, match=f"trained on revision {'b' * 40} of .*, got {'a' * 40}"):
        open_adapter(OnHub(base, trained_on), adapter)
    for mirror in ("unsloth/phi-3-mini-4k-instruct-bnb-4bit", "unsloth/Phi-3-mini-4k-instruct-unsloth-bnb-4bit"):
        edit_json(settings, base_model_name_or_path=mirror)
        open_adapter(OnHub(base, trained_on), adapter)
