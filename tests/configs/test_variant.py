"""What a changed target is called: never as a published one, and never as another variant."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from phi3_onnx.configs import (
    METHODS,
    Quantization,
    Target,
    Thresholds,
    UsageError,
    WeightScheme,
    find_target,
    identified,
    requantized,
    same_package,
    targets,
    with_quantization,
)
from phi3_onnx.configs.target import BLOCK_SIZES

PUBLISHED = {name for target in targets().values() for name in (target.name, *target.aliases)}
RTN = find_target("cpu-int4-rtn")
OWN = Target("mine", "my own", "cpu", "float32")


@pytest.mark.parametrize(
    ("target", "changes", "name"),
    [
        ("cpu-int4-rtn", {"method": "gptq", "block_size": 128}, "cpu-int4-rtn.gptq-block-128"),
        ("cpu-int4-rtn", {"symmetric": False}, "cpu-int4-rtn.asymmetric"),
        ("cpu-int4-awq", {"bits": 8, "symmetric": True}, "cpu-int4-awq.int8-symmetric"),
        ("cpu-fp32", {"method": "awq+gptq"}, "cpu-fp32.awq-gptq"),
        ("cuda-fp16", {"method": "rtn", "block_size": 64}, "cuda-fp16.rtn-block-64"),
        ("cpu-int4-rtn", {"method": "rtn", "block_size": 32}, "cpu-int4-rtn"),
        ("cpu-int4-rtn", {}, "cpu-int4-rtn"),
    ],
)
def test_names_say_what_was_changed(target: str, changes: dict[str, Any], name: str) -> None:
    variant = with_quantization(find_target(target), **changes)
    assert variant.name == name
    assert identified(variant) == variant
    if name != target:
        assert variant.aliases == ()


@pytest.mark.parametrize(
    ("target", "method", "judged_as"),
    [
        ("cpu-fp32", "rtn", "cpu-int4-rtn"),
        ("cuda-fp16", "awq+gptq", "dml-int4-awq"),
        ("cpu-fp32", "awq", "cpu-int4-awq"),
    ],
)
def test_a_plain_target_that_gets_quantized_is_judged_as_quantized_ones_are(
    target: str, method: Any, judged_as: str
) -> None:
    variant = with_quantization(find_target(target), method=method)
    assert variant.thresholds == find_target(judged_as).thresholds
    assert variant.name.count(".") == 1 and variant == identified(variant)


def test_no_two_variants_share_a_name() -> None:
    made: dict[str, Target] = {}
    for target, method, bits, block, symmetric in product(
        targets().values(), METHODS, (4, 8), BLOCK_SIZES, (True, False)
    ):
        variant = with_quantization(target, method=method, bits=bits, block_size=block, symmetric=symmetric)
        assert made.setdefault(variant.name, variant) == variant
        assert variant == target or variant.name not in PUBLISHED
    assert len(made) == len(targets()) * len(METHODS) * 2 * len(BLOCK_SIZES) * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"opset": 22},
        {"last_token_logits": True},
        {"thresholds": Thresholds(mean_kl=2.0)},
        {"thresholds": Thresholds(mean_kl=3.0)},
        {"quantization": None},
        {"io_dtype": "float16"},
        {"provider": "cuda"},
    ],
)
def test_any_change_at_all_costs_the_published_name(changes: dict[str, Any]) -> None:
    variant = identified(replace(RTN, **changes))
    assert variant.name.startswith("cpu-int4-rtn.")
    assert variant.aliases == ()
    assert identified(variant) == variant
    # Taken back, it is the published target again, with its aliases.
    assert identified(replace(variant, **{name: getattr(RTN, name) for name in changes})) is RTN


def test_what_words_do_not_say_is_told_apart_by_a_digest() -> None:
    assert RTN.quantization is not None
    heads = [replace(RTN.quantization, overrides=(("lm_head.weight", WeightScheme(8, n, True)),)) for n in (64, 128)]
    names = [requantized(RTN, replace(head, budget="105mb")).name for head in heads]
    assert len(set(names)) == 2
    assert all(name.startswith("cpu-int4-rtn.budget-105mb-") for name in names)
    # A text that is no budget stays out of a folder's name.
    assert "/" not in requantized(RTN, replace(heads[0], budget="../5mb")).name


def test_equal_targets_have_equal_names() -> None:
    whole, decimal = (identified(replace(RTN, thresholds=Thresholds(mean_kl=value))) for value in (2, 2.0))
    assert whole == decimal
    assert whole.name == decimal.name


def test_an_alias_is_no_way_around() -> None:
    assert identified(replace(RTN, name="mobile")) is RTN
    assert identified(replace(RTN, name="mobile", opset=22)).name == identified(replace(RTN, opset=22)).name
    own = identified(replace(RTN, name="mine"))
    assert own.name == "mine"
    assert own.aliases == ()


def test_a_target_of_ones_own_keeps_its_name_and_its_variants_have_others() -> None:
    assert identified(OWN) == OWN
    variant = with_quantization(OWN, method="rtn")
    other = with_quantization(OWN, method="rtn", block_size=64)
    assert len({OWN.name, variant.name, other.name}) == 3
    assert variant.name.startswith("mine.")
    assert with_quantization(variant, block_size=64) == other


@pytest.mark.parametrize("name", ["", "../x", "My-Target", "a b", "a/b", "-x", "x" * 64, "CPU-INT4-RTN"])
def test_a_name_must_be_a_folders_everywhere(name: str) -> None:
    with pytest.raises(UsageError, match="give the target another name"):
        identified(replace(OWN, name=name))
    with pytest.raises(UsageError, match="give the target another name"):
        identified(replace(OWN, aliases=(name,)))


def test_the_same_package_however_it_is_judged() -> None:
    assert same_package(RTN, replace(RTN, thresholds=Thresholds(), description="?"))
    assert not same_package(RTN, replace(RTN, opset=22))


def test_a_target_without_quantization_needs_a_method() -> None:
    with pytest.raises(UsageError, match="--quant"):
        with_quantization(find_target("cpu-fp32"), block_size=64)
    start = with_quantization(find_target("cuda-fp16"), method="rtn").quantization
    eight = WeightScheme(8, 32, True)
    assert start == Quantization(
        "rtn", WeightScheme(4, 32, True), 0, (("lm_head.weight", eight), ("model.embed_tokens.weight", eight))
    )
