"""The advice to install an extra names where this project came from."""

import json
from importlib.metadata import distribution

import pytest
from phi3_onnx.configs.origin import _command, install_command


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({}, 'pip install "phi3-onnx[cuda]"'),
        ({"url": "file:///home/a%20b/p", "dir_info": {}}, 'pip install "/home/a b/p[cuda]"'),
        ({"url": "file:///home/p", "dir_info": {"editable": True}}, 'pip install -e "/home/p[cuda]"'),
        (
            {"url": "https://a.b/p.git", "vcs_info": {"vcs": "git", "requested_revision": "v2", "commit_id": "c0ffee"}},
            'pip install "phi3-onnx[cuda] @ git+https://a.b/p.git@v2"',
        ),
        (
            {"url": "https://a.b/p.git", "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}},
            'pip install "phi3-onnx[cuda] @ git+https://a.b/p.git@c0ffee"',
        ),
        ({"url": "https://a.b/p.whl", "archive_info": {}}, 'pip install "phi3-onnx[cuda] @ https://a.b/p.whl"'),
    ],
    ids=["index", "folder", "editable", "tag", "commit", "wheel"],
)
def test_each_kind_of_origin(origin: dict[str, object], command: str) -> None:
    assert _command(origin, "cuda") == command


def test_it_is_the_origin_of_this_installation() -> None:
    text = distribution("phi3-onnx").read_text("direct_url.json")
    assert install_command("cpu", "export") == _command(json.loads(text) if text else {}, "cpu,export")
