"""The store: where packages go, and by which names they are found."""

from dataclasses import replace
from pathlib import Path

import pytest
from phi3_onnx.configs import (
    Manifest,
    PackageError,
    Target,
    UsageError,
    default_package,
    find_package,
    find_target,
    list_packages,
    store_folder,
    with_quantization,
)
from phi3_onnx.configs.manifest import MANIFEST_NAME
from phi3_onnx.configs.store import cache_folder, foreign_packages, home

RTN = find_target("cpu-int4-rtn")
GPTQ = with_quantization(RTN, method="gptq", block_size=128)


def put(target: Target, *, model: str = "Model", day: int = 1, folder: str | None = None) -> Path:
    place = store_folder(model, folder or target.name)
    place.mkdir(parents=True)
    created = f"2026-01-{day:02}T00:00:00+00:00"
    manifest = Manifest(target, f"org/{model}", None, model, created, {}, {}, 1, 32.0, {}, {})
    (place / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return place


def test_the_folders_follow_the_environment(isolated: Path) -> None:
    assert home() == isolated
    assert cache_folder() == isolated / "cache"
    assert store_folder("Model", "cpu-fp32") == isolated / "packages" / "Model" / "cpu-fp32"


def test_two_variants_lie_side_by_side() -> None:
    plain, variant = put(RTN), put(GPTQ, day=2)
    assert plain != variant
    assert [package.name for package in list_packages()] == [f"Model/{GPTQ.name}", "Model/cpu-int4-rtn"]
    assert find_package("cpu-int4-rtn") == find_package("mobile") == find_package("Model/mobile") == plain
    assert find_package(GPTQ.name) == find_package(f"Model/{GPTQ.name}") == variant
    with pytest.raises(UsageError, match="fits 2 packages"):
        find_package("Model")


def test_a_variant_in_the_targets_folder_is_not_taken_for_it() -> None:
    """Versions that called both the same put it there."""
    folder = put(GPTQ, folder="cpu-int4-rtn")
    with pytest.raises(PackageError, match="Model/cpu-int4-rtn"):
        find_package("cpu-int4-rtn")
    assert find_package(GPTQ.name) == find_package("Model/cpu-int4-rtn") == folder


def test_a_target_of_ones_own_is_found_by_its_aliases() -> None:
    folder = put(Target("mine", "", "cpu", "float32", aliases=("ours",)))
    assert find_package("mine") == find_package("ours") == find_package("Model/mine") == folder


def test_the_newest_is_the_default() -> None:
    with pytest.raises(PackageError, match="phi3-onnx export --target dml-int4-awq"):
        default_package("dml")
    put(RTN)
    put(find_target("cuda-fp16"), day=3)
    put(replace(RTN, name="mine"), day=2)
    assert default_package().name == "Model/cuda-fp16"
    assert default_package("cpu").name == "Model/mine"


def test_what_is_no_package_is_passed_over() -> None:
    broken = put(RTN)
    (broken / MANIFEST_NAME).write_text("{", encoding="utf-8")
    put(RTN, model="Half", folder=".cpu-int4-rtn-123")
    foreign = store_folder("Model", "theirs")
    foreign.mkdir()
    (foreign / "genai_config.json").write_text("{}", encoding="utf-8")
    assert list_packages() == []
    assert foreign_packages() == {"Model/theirs": foreign}
    assert find_package("Model/theirs") == foreign
    with pytest.raises(PackageError, match="the store is empty"):
        find_package("nothing")


def test_a_name_that_is_no_text() -> None:
    with pytest.raises(PackageError, match="is not UTF-8 text; rename the folder"):
        find_package("a\udcff")
