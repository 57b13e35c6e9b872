"""The small real model with drafts of another: the same answers with a good draft model and with a bad one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from phi3_onnx.export import export
from phi3_onnx.runtime import Model, Response, load
from phi3_onnx.runtime.batch import BatchPrompt, answer_all
from phi3_onnx.runtime.decoding.response import last_response

pytestmark = pytest.mark.real

QUESTIONS = ("List three facts about rain.", "Write one line about chess.", "What is the capital of France?")
SAVE_FOLDER = Path(__file__).parents[1] / "bench/save_folder.py"


@pytest.fixture(scope="module")
def package(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(small_gguf, "cpu-int4-rtn", tmp_path_factory.mktemp("whole") / "package")


@pytest.fixture(scope="module")
def two_layers(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a package of the model's first two layers, which says next to nothing."""
    folder = tmp_path_factory.mktemp("cut") / "checkpoint"
    subprocess.run([sys.executable, str(SAVE_FOLDER), str(small_gguf), str(folder)], check=True)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 2}))
    return export(folder, "cpu-int4-rtn", folder.parent / "package")


def answers(model: Model) -> list[Response]:
    """Return the answer to each question alone, and then to all together."""
    options = model.options(max_tokens=24, temperature=0, logprobs=1)
    jobs = [BatchPrompt(model.encode(question), options) for question in QUESTIONS]
    alone = [last_response(model.run(job.prompt, job.options)) for job in jobs]
    return alone + [result for result in answer_all(model, jobs, batch=3) if isinstance(result, Response)]


def test_answers_are_the_same_with_any_draft_model(package: Path, two_layers: Path) -> None:
    with load(package, speculate="off") as model:
        plain = answers(model)
    shares = list[float]()
    for draft in (package, two_layers):
        with load(package, draft=draft, speculate="4") as model:
            found = answers(model)
        assert [(one.token_ids, one.logprobs) for one in found] == [(one.token_ids, one.logprobs) for one in plain]
        shares.append(sum(one.accepted_tokens for one in found) / sum(one.drafted_tokens for one in found))
    # Of itself, what is drafted past an answer's end does not come true.
    assert shares[0] > 0.8 and shares[1] < 0.2
