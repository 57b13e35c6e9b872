"""Targets: the tables that ship, and one clear line for a table that is wrong."""

import json

import pytest
from phi3_onnx.configs import UsageError, WeightScheme, find_target, parse_target, targets
from phi3_onnx.configs.target import table_of, target_of

MINIMAL = 'description = "mine"\nprovider = "cpu"\nio_dtype = "float32"\n'
INT4 = "[quantization]\nmethod = 'rtn'\nweights = { bits = 4, block_size = 32, symmetric = true }\n"


def test_names_and_aliases_are_nobody_elses_and_have_no_dot() -> None:
    names = [name for target in targets().values() for name in (target.name, *target.aliases)]
    assert len(set(names)) == len(names) > len(targets())
    assert not any("." in name for name in names)
    for target in targets().values():
        assert {find_target(name) for name in (target.name, *target.aliases)} == {target}


def test_an_override_states_only_what_differs() -> None:
    target = parse_target("mine", MINIMAL + INT4 + '[quantization.overrides]\n"lm_head.*" = { bits = 8 }\n')
    assert target.quantization is not None
    assert target.quantization.scheme_for("lm_head.weight") == WeightScheme(8, 32, True)
    assert target.quantization.scheme_for("model.layers.0.mlp.down_proj.weight") == WeightScheme(4, 32, True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MINIMAL + "io_dtyp = 1\n", ["unknown key 'io_dtyp'", "io_dtype"]),
        ('description = "x"\n', ["io_dtype", "provider"]),
        (MINIMAL + INT4.replace("32", "33"), ["block size", "33"]),
        (MINIMAL + INT4.replace("bits = 4", "bits = 3"), ["bits must be one of 4, 8", "3"]),
        (MINIMAL + "[thresholds]\nmean_k = 1\n", ["thresholds", "mean_kl"]),
        ("provider = ", ["not valid TOML"]),
    ],
)
def test_a_wrong_table_is_one_clear_line(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError, match=r"target mine") as caught:
        parse_target("mine", text)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", targets())
def test_a_target_survives_json(name: str) -> None:
    target = find_target(name)
    assert target_of(json.loads(json.dumps(table_of(target)))) == target


def test_a_variants_name_is_not_a_targets() -> None:
    with pytest.raises(UsageError, match=r"variant of cpu-int4-rtn.*--quant"):
        find_target("cpu-int4-rtn.gptq")
    with pytest.raises(UsageError, match=r"unknown target 'cpu-int5'.*cpu-int4-rtn"):
        find_target("cpu-int5")
