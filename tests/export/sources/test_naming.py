import pytest
from phi3_onnx.export.sources.naming import gguf_name, short_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Phi-3-mini-4k-instruct", "Phi-3-mini-4k-instruct"),
        ("Phi 3.5: mini/x\\y?", "Phi-3.5-mini-x-y"),
        ("../..", "model"),
        ("", "model"),
        ("模型", "model"),
        (".hidden", "hidden"),
    ],
)
def test_names_are_fit_for_a_folder(name: str, expected: str) -> None:
    assert short_name(name) == expected


@pytest.mark.parametrize(
    ("stem", "general_name", "expected"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "Smollm2 135M 8k Lc100K Mix1 Ep2", "SmolLM2-135M-Instruct"),
        ("Phi-3-mini-4k-instruct-q4", "Phi3", "Phi-3-mini-4k-instruct"),
        ("Phi-3-mini-4k-instruct-fp16", "Phi3", "Phi-3-mini-4k-instruct"),
        ("Phi-3.5-mini-instruct-IQ4_XS", None, "Phi-3.5-mini-instruct"),
        ("llama-3B-Q4_K_M", None, "llama-3B"),
        ("model", "Phi 3 Mini", "Phi-3-Mini"),
        ("ggml-model-f16", "Phi 3 Mini", "Phi-3-Mini"),
        ("model", None, "model"),
    ],
)
def test_a_gguf_is_named_after_its_file(stem: str, general_name: str | None, expected: str) -> None:
    assert gguf_name(stem, general_name) == expected
