"""`phi3-onnx targets`: every target with what it is, for people and as JSON."""

import json

from click.testing import CliRunner
from phi3_onnx.cli import root
from phi3_onnx.configs import targets


def test_every_target_and_its_aliases_are_listed() -> None:
    ran = CliRunner().invoke(root, ["targets"])
    assert ran.exit_code == 0
    for target in targets().values():
        assert f"{target.name} " in ran.output
        assert target.weights in ran.output
        assert target.description in ran.output
        assert all(alias in ran.output for alias in target.aliases)


def test_json_holds_thresholds_too() -> None:
    listed = json.loads(CliRunner().invoke(root, ["targets", "--json"]).output)
    assert [entry["name"] for entry in listed] == list(targets())
    rtn = next(entry for entry in listed if entry["name"] == "cpu-int4-rtn")
    assert rtn["thresholds"]["mean_kl"] == targets()["cpu-int4-rtn"].thresholds.mean_kl
    assert rtn["quantization"]["weights"] == {"bits": 4, "block_size": 32, "symmetric": True}
