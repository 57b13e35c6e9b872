"""Threads spin between small operators, and sleep between the large ones of a model of billions of weights."""

import json

import pytest
from phi3_onnx.runtime import load
from phi3_onnx.runtime.engines.genai import _config
from phi3_onnx.runtime.engines.packed import PackedGraph
from phi3_onnx.runtime.engines.session import LogitsSession
from phi3_onnx.runtime.package import Package, open_package
from phi3_onnx.runtime.providers import hardware
from phi3_onnx.runtime.providers.imports import import_genai

_KEY = "session.intra_op.allow_spinning"


@pytest.fixture(params=[("1", hardware._LARGE_LAYER), ("0", 0)], ids=["small", "large"])
def expected(request, monkeypatch):
    """Return what is expected of a package whose layers count as small or as large."""
    value, largest = request.param
    monkeypatch.setattr(hardware, "_LARGE_LAYER", largest)
    return value


@pytest.fixture
def package(tiny_package) -> Package:
    found = open_package(tiny_package("plain", "cpu-int4-rtn"))
    assert 0 < found.layer_bytes < hardware._LARGE_LAYER
    return found


@pytest.mark.parametrize(
    "open_session", [lambda p: PackedGraph(p)._inference, lambda p: LogitsSession(p.folder).inference]
)
def test_onnx_runtime_is_told(package, expected, open_session):
    assert open_session(package).get_session_options().get_session_config_entry(_KEY) == expected


def test_threads_of_a_model_and_its_draft_sleep_while_the_other_runs(tiny_package):
    key, package = "session.force_spinning_stop", tiny_package("plain", "cpu-int4-rtn")

    def stops(model) -> bool:
        try:
            return model.engine.graph._inference.get_session_options().get_session_config_entry(key) == "1"
        except RuntimeError:  # it has no such entry
            return False

    with load(package, engine="ort") as alone, load(package, engine="ort", draft=package) as model:
        assert not stops(alone)
        assert stops(model) and stops(model.draft)


def test_genai_is_told_and_takes_it(package, expected, monkeypatch):
    og, seen = import_genai(), []
    overlay = og.Config.overlay

    def noting(config, text):
        seen.append(json.loads(text))
        overlay(config, text)

    monkeypatch.setattr(og.Config, "overlay", noting)
    og.Model(_config(og, package, "cpu", None, None))
    assert seen[0]["model"]["decoder"]["session_options"][_KEY] == expected
