"""The runtime on ONNX Runtime GenAI itself, with tiny float32 packages, against transformers."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phi3_onnx.configs import EngineError, PackageError, ProviderError, UsageError
from phi3_onnx.runtime import Guidance, load, pipeline
from phi3_onnx.runtime.decoding.generation import Options
from phi3_onnx.runtime.decoding.response import last_response
from phi3_onnx.runtime.decoding.sampling import Sampling
from phi3_onnx.runtime.engines import genai

SWITCH = 4096
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of France?"}]
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def plain(tiny_package):
    with load(tiny_package("gqa")) as model:
        yield model


def greedy(checkpoint, ids, steps):
    """Return the tokens that transformers adds in float32, past end tokens too."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        found = model.generate(torch.tensor([ids]), max_new_tokens=steps, do_sample=False, eos_token_id=None)
    return found[0, len(ids) :].tolist()


def ours(model, ids, steps, **options):
    package = model.package
    ends, package.__dict__["end_tokens"] = package.end_tokens, frozenset()
    try:
        response = last_response(model.run(ids, Options(sampling=GREEDY, max_tokens=steps, **options)))
    finally:
        package.__dict__["end_tokens"] = ends
    return list(response.token_ids)


def random_ids(count, seed=0):
    return np.random.default_rng(seed).integers(10, 260, count).tolist()


@pytest.mark.parametrize("kind", ["gqa", "window"])
def test_greedy_tokens_are_those_of_transformers(tiny, tiny_package, kind):
    # 300 tokens: three chunks of prefill, and nine times the tiny window.
    ids = random_ids(300)
    with load(tiny_package(kind)) as model:
        assert ours(model, ids, 24) == greedy(tiny(kind), ids, 24)


@pytest.mark.parametrize("pad", [None, 407])  # the second token of the answer
def test_genais_choice_is_the_most_likely_token(tiny_package, tmp_path, pad):
    folder = Path(shutil.copytree(tiny_package("gqa"), tmp_path / "package"))
    if pad:
        genai_config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        genai_config["model"]["pad_token_id"] = pad
        (folder / "genai_config.json").write_text(json.dumps(genai_config), encoding="utf-8")
        (folder / "phi3_onnx.json").unlink()
    ids = random_ids(300)
    with load(folder) as model:
        chosen = ours(model, ids, 40)
        assert chosen == ours(model, ids, 40, logprobs=0)  # picked here, from the logits
        assert ours(model, [*ids, *chosen[:2]], 38) == chosen[2:]


def test_the_builders_window_does_not_bound_a_prompt(tiny_package, tmp_path):
    folder = Path(shutil.copytree(tiny_package("window"), tmp_path / "package"))
    (folder / "phi3_onnx.json").unlink()
    genai_config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    section = {"window_size": 31, "slide_key_value_cache": False, "slide_inputs": False, "layers": [], "cache_slack": 0}
    genai_config["model"]["decoder"]["sliding_window"] = section
    (folder / "genai_config.json").write_text(json.dumps(genai_config), encoding="utf-8")
    ids = random_ids(300)
    with load(tiny_package("window")) as model, load(folder) as foreign:
        assert ours(foreign, ids, 24) == ours(model, ids, 24)


@pytest.fixture(scope="module")
def longrope(tiny_package):
    with load(tiny_package("longrope")) as model:
        assert model.package.longrope_switch == SWITCH
        yield model


class TestLongRope:
    @pytest.mark.parametrize("count", [SWITCH - 6, SWITCH - 1, SWITCH, SWITCH + 1, SWITCH + 300])
    def test_greedy_tokens_across_the_switch(self, longrope, tiny, count):
        ids = random_ids(count, seed=11)
        assert ours(longrope, ids, 10) == greedy(tiny("longrope"), ids, 10)

    def test_a_conversation_that_grows_across_the_switch_is_as_if_it_were_new(self, longrope):
        ids = random_ids(SWITCH + 300, seed=2)
        cache = longrope.new_cache()
        options = Options(sampling=GREEDY, max_tokens=4)
        for count in (3000, SWITCH - 2, SWITCH + 100, SWITCH + 200, 500):
            kept = last_response(longrope.run(ids[:count], options, cache=cache, spare=2000))
            new = last_response(longrope.run(ids[:count], options))
            assert kept.token_ids == new.token_ids, count
        cache.close()


def test_a_kept_cache_changes_nothing(plain):
    kept = plain.chat(temperature=0, max_tokens=12)
    for text in ("What is the capital of France?", "And of Spain?", "Thanks"):
        response = kept.ask(text)
        new = plain.generate(kept.messages[:-1], temperature=0, max_tokens=12)
        assert response.token_ids == new.token_ids
    assert response.cached_tokens > 0
    kept.close()


def test_a_device_that_can_not_continue_gives_the_same_tokens(tiny_package, plain, monkeypatch):
    # What DirectML needs, tried on the CPU: single tokens through GenAI's own search, all else from the start.
    monkeypatch.setattr(genai, "_RESTARTING_DEVICES", ("CPU",))
    ids = random_ids(300)
    with load(tiny_package("gqa")) as restarting:
        assert not restarting.engine.continuous
        assert ours(restarting, ids, 12) == ours(plain, ids, 12)
        sampled = {"max_tokens": 12, "temperature": 1.5, "seed": 3}
        assert restarting.generate(CHAT, **sampled).token_ids == plain.generate(CHAT, **sampled).token_ids
        chat = restarting.chat(max_tokens=8, temperature=0)
        assert chat.ask("Hi").token_ids == plain.generate("Hi", max_tokens=8, temperature=0).token_ids
        assert chat.ask("More").cached_tokens == 0


def test_threads_share_a_model(plain):
    prompts = ["Hi", "What is the capital of France?", "Once upon a time", "x" * 200]
    expected = [plain.generate(prompt, temperature=0, max_tokens=12).token_ids for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        found = pool.map(lambda prompt: plain.generate(prompt, temperature=0, max_tokens=12).token_ids, prompts)
    assert list(found) == expected


def test_a_seed_gives_the_same_text_again(plain):
    def draw(seed):
        return plain.generate(CHAT, max_tokens=20, temperature=2.0, seed=seed).token_ids

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_chat_templates_and_ids_are_hugging_faces(plain, tiny):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tiny("gqa"))
    expected = reference.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert plain.encode(CHAT) == expected


def test_the_pipeline_answers_as_transformers_does(tiny, tiny_package):
    import torch
    import transformers

    checkpoint = tiny("gqa")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    theirs = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    mine = pipeline("text-generation", model=tiny_package("gqa"))
    card = {"max_new_tokens": 40, "return_full_text": False, "temperature": 0.0, "do_sample": False}
    assert mine(CHAT, **card) == theirs(CHAT, **card)
    assert mine("Once upon a time", max_new_tokens=20, do_sample=False) == theirs(
        "Once upon a time", max_new_tokens=20, do_sample=False
    )
    assert mine([CHAT, CHAT[1:]], max_new_tokens=9, do_sample=False) == theirs(
        [CHAT, CHAT[1:]], max_new_tokens=9, do_sample=False
    )
    begun = [*CHAT, {"role": "assistant", "content": "The capital"}]
    assert mine(begun, max_new_tokens=9, do_sample=False) == theirs(begun, max_new_tokens=9, do_sample=False)
    mine.model.close()


def test_score_is_the_log_softmax_of_transformers(plain, tiny):
    import torch
    from transformers import AutoModelForCausalLM

    text = "The quick brown fox jumps over the lazy dog. " * 20
    score = plain.score(text)
    ids = torch.tensor([score.token_ids])
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tiny("gqa"), dtype=torch.float32)
        logprobs = model(ids).logits[0, :-1].double().log_softmax(-1)
    expected = logprobs.gather(1, ids[0, 1:, None])[:, 0].numpy()
    assert len(score.token_ids) > 128  # more than one chunk
    # Float32 sums in another order, through two layers: a few 1e-6 of logits of about 10.
    np.testing.assert_allclose(score.logprobs, expected, atol=1e-4)


def test_log_probabilities_of_greedy_tokens_lead(plain):
    response = plain.generate(CHAT, max_tokens=8, temperature=0, logprobs=3)
    assert response.logprobs is not None
    for entry in response.logprobs:
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert entry.top[0][1] >= entry.top[1][1] >= entry.top[2][1]


class TestGuidance:
    def test_a_regular_expression_is_kept_to(self, plain):
        guidance = Guidance("regex", "[0-9]{3}-[0-9]{2}")
        text = plain.generate(CHAT, max_tokens=20, guidance=guidance).text
        assert len(text) == 6
        assert text.replace("-", "").isdigit()

    def test_a_json_schema_is_kept_to(self, plain):
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
        text = plain.generate(CHAT, max_tokens=40, guidance=Guidance("json_schema", json.dumps(schema))).text
        assert json.loads(text)["ok"] in (True, False)

    def test_a_grammar_is_kept_to_when_sampling(self, plain):
        guidance = Guidance("lark_grammar", 'start: "yes" | "no"')
        texts = {plain.generate(CHAT, temperature=2.0, seed=i, guidance=guidance).text for i in range(4)}
        assert texts <= {"yes", "no"}

    def test_what_it_gives_up_midway_is_no_failure_of_the_engine(self, plain, monkeypatch):
        monkeypatch.setattr("phi3_onnx.runtime.decoding.engine.check_bounds", lambda *_: None)
        schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}}
        with pytest.raises(UsageError, match=r"json_schema is not understood, or too complex: .* items"):
            plain.generate(CHAT, max_tokens=8, guidance=Guidance("json_schema", json.dumps(schema)))

    def test_what_is_not_understood_is_refused(self, plain):
        with pytest.raises(UsageError, match="the regex is not understood"):
            plain.generate(CHAT, guidance=Guidance("regex", "(["))
        with pytest.raises(UsageError, match="not valid JSON"):
            Guidance("json_schema", "{")
        with pytest.raises(UsageError, match="guidance must be one of"):
            Guidance("xml", "x")  # pyright: ignore[reportArgumentType]


class TestLoading:
    @pytest.mark.parametrize("name", ["cuda", "dml"])
    def test_a_gpu_that_is_not_here_is_an_error_with_a_remedy(self, tiny_package, name):
        import onnxruntime

        if {"CUDAExecutionProvider", "DmlExecutionProvider"} & set(onnxruntime.get_available_providers()):
            pytest.skip("this machine's ONNX Runtime has a GPU's provider")
        with pytest.raises(ProviderError, match=f"provider {name} cannot run here: .*(pip|--provider)") as caught:
            load(tiny_package("gqa"), provider=name)
        assert caught.value.exit_code == 3

    def test_a_broken_graph_is_the_packages_fault(self, tiny_package, tmp_path):
        folder = foreign(tiny_package("gqa"), tmp_path)
        (folder / "model.onnx").write_bytes(b"not a graph")
        for provider in ("auto", "cpu"):
            with pytest.raises(PackageError, match="cannot be loaded by onnxruntime-genai"):
                load(folder, provider=provider)

    def test_a_foreign_package_runs(self, tiny_package, tmp_path, plain):
        with load(foreign(tiny_package("gqa"), tmp_path)) as model:
            assert model.package.manifest is None
            assert model.generate(CHAT, max_tokens=5).token_ids == plain.generate(CHAT, max_tokens=5).token_ids

    def test_a_package_made_for_a_gpu_runs_on_the_cpu_with_auto(self, tiny_package):
        with load(tiny_package("gqa", "cuda-fp16")) as model:
            assert model.package.made_for == "cuda"
            if model.provider == "cpu":
                assert str(model.choice).startswith("cuda: not chosen, ")
            assert model.generate(CHAT, max_tokens=3).completion_tokens > 0

    def test_a_closed_model_runs_no_more(self, tiny_package):
        model = load(tiny_package("gqa"))
        stream = model.stream(CHAT, max_tokens=5)
        next(stream)
        model.close()
        with pytest.raises(EngineError, match="the model was closed"):
            list(stream)


def foreign(package: Path, tmp_path: Path) -> Path:
    """Return a copy of a package without what only phi3-onnx writes."""
    folder = tmp_path / "foreign"
    shutil.copytree(package, folder)
    (folder / "phi3_onnx.json").unlink()
    return folder
