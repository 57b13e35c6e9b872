"""What several tests of the small real model share: its float32 package."""

from pathlib import Path

import pytest
from phi3_onnx.export import export


@pytest.fixture(scope="session")
def small_package(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the small real model's `cpu-fp32` package, shared by all tests: not to be changed."""
    return export(small_gguf, "cpu-fp32", tmp_path_factory.mktemp("small") / "package")
