"""The small real model, many requests at once: each has the tokens and log probabilities that it has alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from phi3_onnx.configs import find_target
from phi3_onnx.export import export
from phi3_onnx.runtime import Model, Response, load
from phi3_onnx.runtime.batch import BatchPrompt, answer_all
from phi3_onnx.runtime.decoding.response import last_response

pytestmark = pytest.mark.real

TOPICS = ("rain", "bread", "a bridge", "the moon", "trains", "a small dog", "chess", "paper")
QUESTIONS = ("What is {}?", "Write one line about {}.", "List three facts about {}.", "Why do people like {}?")


@pytest.fixture(scope="module", params=["block 32", "block 128"])
def model(
    request: pytest.FixtureRequest, small_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    target = find_target("cpu-int4-rtn")
    if request.param == "block 128":
        wanted = find_target("cpu-int4-awq").quantization
        assert wanted is not None
        target = replace(target, quantization=replace(wanted, method="rtn"))
    folder = export(small_gguf, target, tmp_path_factory.mktemp("together") / "package")
    with load(folder, engine="together") as loaded:
        yield loaded


def test_a_crowd_gets_what_each_gets_alone(model: Model) -> None:
    questions = [question.format(topic) for topic in TOPICS for question in QUESTIONS]
    options = model.options(max_tokens=12, temperature=0, logprobs=2)
    jobs = [
        BatchPrompt(model.encode(question, system="You are a helpful assistant."), options) for question in questions
    ]
    alone = [last_response(model.run(job.prompt, job.options)) for job in jobs]
    crowd = [result for result in answer_all(model, jobs, batch=8) if isinstance(result, Response)]
    assert len(crowd) == len(alone) == 32
    for one, other in zip(alone, crowd, strict=True):
        assert (one.token_ids, one.logprobs) == (other.token_ids, other.logprobs)
    assert len({response.text for response in alone}) > 20
