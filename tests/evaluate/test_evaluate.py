"""Perplexity and distances on a text of one's own, against definitions worked out in one piece."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from phi3_onnx.configs import PackageError, UsageError
from phi3_onnx.evaluate import evaluate as module
from phi3_onnx.evaluate.evaluate import evaluate
from phi3_onnx.evaluate.parity.compare import PackageRows
from phi3_onnx.evaluate.parity.corpus import Passage, text
from phi3_onnx.export import open_checkpoint
from phi3_onnx.runtime.decoding.sampling import log_softmax
from phi3_onnx.runtime.engines.session import LogitsSession
from phi3_onnx.runtime.text.tokenizer import Tokenizer

Make = Callable[..., Path]

TEXT = text()[:600]


def nll(session: LogitsSession, ids: list[int]) -> list[float]:
    ((_, logits),) = session.logits(np.array(ids), chunk=len(ids))
    log_probabilities = log_softmax(logits.astype(np.float64))
    return [-log_probabilities[i, token] for i, token in enumerate(ids[1:])]


def test_perplexity_is_that_of_stretches_run_by_themselves(tiny_package: Make) -> None:
    folder = tiny_package("plain")
    found = evaluate(folder, TEXT, provider="cpu", context=100)
    ids = Tokenizer(folder).encode(TEXT, special=False)
    session = LogitsSession(folder)
    wanted = [x for start in range(0, len(ids), 100) for x in nll(session, ids[start : start + 100])]
    assert (found.tokens, found.perplexity.tokens) == (len(ids), len(wanted))
    # float32 logits of two runs of other sizes differ by 1e-5.
    assert found.perplexity.mean_nll == pytest.approx(np.mean(wanted), abs=1e-5)
    assert found.perplexity.standard_error == pytest.approx(
        math.exp(np.mean(wanted)) * np.std(wanted, ddof=1) / math.sqrt(len(wanted)), rel=1e-4
    )
    assert (found.metrics, found.reference) == (None, None)
    assert found.provider == "CPUExecutionProvider"


def test_a_checkpoint_and_its_float32_package_are_the_same_reference(tiny: Make, tiny_package: Make) -> None:
    package, checkpoint = tiny_package("gqa", "cuda-fp16"), open_checkpoint(tiny("gqa"))
    torch = evaluate(package, TEXT, reference=checkpoint, provider="cpu", context=150)
    onnx = evaluate(package, TEXT, reference=tiny_package("gqa"), provider="cpu", context=150)
    assert torch.reference == f"{checkpoint.source} (PyTorch, float32)"
    assert onnx.reference == "tiny-gqa/cpu-fp32 (CPUExecutionProvider)"
    assert torch.metrics is not None
    assert onnx.metrics is not None
    assert torch.metrics.mean_kl > 1e-7
    # The references differ by float32 rounding (1e-5 on logits), the package from both by float16's (1e-2).
    assert onnx.metrics.mean_kl == pytest.approx(torch.metrics.mean_kl, rel=0.01)
    assert onnx.metrics.reference.mean_nll == pytest.approx(torch.metrics.reference.mean_nll, abs=1e-5)
    assert onnx.perplexity == onnx.metrics.package


def test_many_passes_of_the_reference_give_what_one_gives(
    tiny: Make, tiny_package: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, checkpoint = tiny_package("gqa", "cuda-fp16"), open_checkpoint(tiny("gqa"))
    once = evaluate(package, TEXT, reference=checkpoint, provider="cpu", context=60)
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 130)
    assert evaluate(package, TEXT, reference=checkpoint, provider="cpu", context=60).metrics == once.metrics


def test_max_tokens_takes_the_texts_start(tiny_package: Make) -> None:
    folder = tiny_package("plain")
    found = evaluate(folder, TEXT, provider="cpu", max_tokens=30)
    assert found.tokens == 30
    ids = Tokenizer(folder).encode(TEXT, special=False)[:30]
    assert found.perplexity.mean_nll == pytest.approx(np.mean(nll(LogitsSession(folder), ids)), abs=1e-5)


def test_another_packages_rows_come_in_any_pieces(tiny_package: Make) -> None:
    session = LogitsSession(tiny_package("plain"))
    passage = Passage(np.random.default_rng(0).integers(0, 512, 600), 0, "")
    whole = np.concatenate([logits for _, logits in session.logits(passage.ids, chunk=256)])
    rows = PackageRows(session, passage)
    pieces = [rows(start, stop) for start, stop in ((0, 1), (1, 300), (300, 599), (599, 600))]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_what_can_not_be_measured_is_said(tiny: Make, tiny_package: Make) -> None:
    folder = tiny_package("plain")
    with pytest.raises(UsageError, match="2 tokens or more, got 0"):
        evaluate(folder, "", provider="cpu")
    with pytest.raises(UsageError, match="2 to 4096 tokens, got 5000"):
        evaluate(folder, TEXT, provider="cpu", context=5000)
    with pytest.raises(PackageError, match=r"512 tokens, .* 600: they are different models"):
        evaluate(folder, TEXT, reference=open_checkpoint(tiny("plain", vocab_size=600)), provider="cpu")


def test_figures_are_json(tiny: Make, tiny_package: Make) -> None:
    found = evaluate(tiny_package("plain"), TEXT[:40], reference=open_checkpoint(tiny("plain")), provider="cpu")
    table = found.to_dict()
    assert table["metrics"]["mean_kl"] == found.metrics.mean_kl if found.metrics else False
    assert table["perplexity"]["perplexity"] == pytest.approx(math.exp(found.perplexity.mean_nll))
    assert table["versions"]["onnxruntime"]
