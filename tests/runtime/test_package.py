import json

import pytest
from phi3_onnx.configs import Manifest, PackageError, find_target
from phi3_onnx.configs.manifest import MANIFEST_NAME, FileEntry
from phi3_onnx.runtime.package import open_package
from scripted import write_scripted_package


@pytest.fixture
def folder(tmp_path):
    write_scripted_package(tmp_path / "package")
    return tmp_path / "package"


def change(folder, name, **values):
    path = folder / name
    table = json.loads(path.read_text()) if path.exists() else {}
    table.update(values)
    path.write_text(json.dumps(table))


def write_manifest(folder, **values):
    files = {path.name: FileEntry(path.stat().st_size, "") for path in folder.iterdir()}
    table = {
        "target": find_target("cuda-fp16"),
        "source": "org/Model",
        "revision": None,
        "model": "Model",
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {},
        "ops": {},
        "num_parameters": 1,
        "bits_per_weight": 16.0,
        "tensors": {},
        "files": files,
    }
    (folder / MANIFEST_NAME).write_text(Manifest(**{**table, **values}).to_json())


def test_a_foreign_package_is_read_from_its_configs(folder):
    package = open_package(folder)
    assert package.manifest is None
    assert package.name == "package"
    assert package.made_for == "cpu"
    assert package.context_length == 4096
    # 2 (keys and values) * 2 layers * 4 heads * 8 * 4 bytes
    assert package.kv_bytes_per_token == 512


@pytest.mark.parametrize("provider", ["DML", "webgpu"])
def test_the_provider_of_a_foreign_package_is_in_its_session_options(folder, provider):
    genai = json.loads((folder / "genai_config.json").read_text())
    genai["model"]["decoder"]["session_options"] = {"provider_options": [{provider: {}}]}
    change(folder, "genai_config.json", **genai)
    package = open_package(folder)
    assert package.made_for == provider.lower()
    assert package.kv_bytes_per_token == 256  # float16


def test_our_own_package_says_what_it_is(folder):
    write_manifest(folder)
    package = open_package(folder)
    assert (package.name, package.made_for, package.kv_bytes_per_token) == ("Model/cuda-fp16", "cuda", 256)


def test_a_file_of_another_size_is_named(folder):
    write_manifest(folder)
    (folder / "model.onnx").write_bytes(b"x")
    with pytest.raises(PackageError, match=r"is damaged: model\.onnx has 1 bytes, expected 0"):
        open_package(folder)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (["genai_config.json"], "has no genai_config.json"),
        (["tokenizer.json"], "has no tokenizer.json; export or download the package again"),
        (["model.onnx", "tokenizer.json"], "has no model.onnx and no tokenizer.json"),
    ],
)
def test_a_missing_file_is_named(folder, remove, message):
    for name in remove:
        (folder / name).unlink()
    with pytest.raises(PackageError, match=message):
        open_package(folder)


@pytest.mark.parametrize(("text", "message"), [("{", "is not valid JSON"), ("[]", "must hold a JSON object, got list")])
def test_a_broken_generation_config_is_named(folder, text, message):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(PackageError, match=rf"generation_config\.json {message}"):
        open_package(folder)


def test_a_folder_that_does_not_exist():
    with pytest.raises(PackageError, match="neither a folder nor a package in the store"):
        open_package("nowhere/at-all")


@pytest.mark.parametrize(
    ("genai", "generation", "expected"),
    [(7, None, {7}), ([7, 8], 9, {7, 8, 9}), (7, [7, 9], {7, 9})],
)
def test_end_tokens_of_both_files_count(folder, genai, generation, expected):
    table = json.loads((folder / "genai_config.json").read_text())
    table["model"]["eos_token_id"] = genai
    change(folder, "genai_config.json", **table)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation} if generation else {}))
    assert open_package(folder).end_tokens == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 4096}, 4096),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 4096}, 4096),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 2048}}, 2048),
        ({"rope_parameters": {"rope_type": "default"}}, None),
    ],
)
def test_where_longrope_changes_its_factors(folder, config, expected):
    (folder / "config.json").write_text(json.dumps(config))
    assert open_package(folder).longrope_switch == expected


@pytest.mark.parametrize(("context", "expected"), [(131072, 4096), (4096, None)])
def test_without_a_config_json_genais_rule_holds(folder, context, expected):
    (folder / "config.json").unlink()
    table = json.loads((folder / "genai_config.json").read_text())
    table["model"]["context_length"] = context
    change(folder, "genai_config.json", **table)
    assert open_package(folder).longrope_switch == expected


def test_sampling_of_a_foreign_package_without_a_generation_config(folder):
    (folder / "generation_config.json").unlink()
    change(folder, "genai_config.json", search={"do_sample": True, "temperature": 0.5, "top_k": 9, "top_p": 0.8})
    assert str(open_package(folder).sampling) == "temperature 0.5, top-k 9, top-p 0.8"
