import os
import subprocess
import sys
from types import ModuleType

import pytest
from phi3_onnx.configs import ProviderError, UsageError
from phi3_onnx.configs.origin import install_command
from phi3_onnx.runtime.providers import choice, imports
from phi3_onnx.runtime.providers import wheels as wheel_table
from phi3_onnx.runtime.providers.choice import choose, remedy, resolve_ort_providers
from phi3_onnx.runtime.providers.imports import import_genai
from phi3_onnx.runtime.providers.names import canonical, ort_name
from phi3_onnx.runtime.providers.wheels import Wheel, check_wheels, clashing_wheels, wheel_warning

CPU = [Wheel("onnxruntime", "1.32.0", "onnxruntime"), Wheel("onnxruntime-genai", "0.18.0", "onnxruntime_genai")]
CUDA = [
    Wheel("onnxruntime-gpu", "1.32.0", "onnxruntime"),
    Wheel("onnxruntime-genai-cuda", "0.18.0", "onnxruntime_genai"),
]
DIRECTML = [
    Wheel("onnxruntime-directml", "1.24.4", "onnxruntime"),
    Wheel("onnxruntime-genai-directml", "0.13.1", "onnxruntime_genai"),
]


@pytest.fixture
def installed(monkeypatch):
    def install(*wheels, platform="linux"):
        for module in (choice, imports, wheel_table):
            monkeypatch.setattr(module, "installed_wheels", lambda: list(wheels))
        monkeypatch.setattr(sys, "platform", platform)

    return install


def failing(*names):
    def attempt(name):
        if name in names:
            raise RuntimeError(f"{name} is broken.\nand more")
        return f"model on {name}"

    return attempt


class TestNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("cpu", "cpu"),
            ("CPUExecutionProvider", "cpu"),
            ("CUDA", "cuda"),
            ("cudaexecutionprovider", "cuda"),
            ("dml", "dml"),
            ("DirectML", "dml"),
            ("DmlExecutionProvider", "dml"),
            ("auto", "auto"),
            ("qnn", "QNN"),
            ("OpenVINOExecutionProvider", "OpenVINO"),
        ],
    )
    def test_every_spelling_has_one_name(self, name, expected):
        assert canonical(name) == expected

    def test_unknown_names_are_refused_with_the_known_ones(self):
        with pytest.raises(
            UsageError, match=r"unknown provider 'gpu9'; known: auto, cpu, cuda, dml; and by name .*QNN"
        ):
            canonical("gpu9")

    def test_onnx_runtimes_own_names(self):
        assert ort_name("cuda") == "CUDAExecutionProvider"
        assert ort_name("dml") == "DmlExecutionProvider"
        assert ort_name("qnn") == "QNNExecutionProvider"


class TestChoice:
    def test_a_named_provider_is_taken(self):
        model, choice = choose("cuda", "cpu", failing())
        assert model == "model on cuda"
        assert str(choice) == "cuda: chosen, it was asked for"

    def test_a_named_provider_that_fails_is_an_error_with_the_command_and_no_cpu_run(self, installed):
        installed(*CPU)
        tried = []

        def attempt(name):
            tried.append(name)
            raise RuntimeError("no such library")

        with pytest.raises(ProviderError) as caught:
            choose("cuda", "cuda", attempt)
        assert str(caught.value) == (
            "provider cuda cannot run here: the installed onnxruntime 1.32.0 and onnxruntime-genai 0.18.0 are built "
            f"without it; run: pip uninstall -y onnxruntime onnxruntime-genai && {install_command('cuda')}"
        )
        assert caught.value.exit_code == 3
        assert tried == ["cuda"]

    def test_auto_takes_what_the_package_was_made_for(self):
        model, choice = choose("auto", "dml", failing())
        assert model == "model on dml"
        assert str(choice) == "dml: chosen, the package was made for it"

    def test_auto_goes_on_where_that_fails_and_says_why(self, installed):
        installed(*CUDA)
        model, choice = choose("auto", "cuda", failing("cuda", "dml"))
        assert model == "model on cpu"
        assert [(c.provider, c.chosen) for c in choice.candidates] == [("cuda", False), ("dml", False), ("cpu", True)]
        assert str(choice) == (
            "cuda: not chosen, cuda is broken; dml: not chosen, the installed onnxruntime-gpu 1.32.0 and "
            "onnxruntime-genai-cuda 0.18.0 are built without it; cpu: chosen, it runs the package"
        )

    def test_auto_leaves_a_cpu_package_on_the_cpu(self):
        _, choice = choose("auto", "cpu", failing("cuda", "dml"))
        assert str(choice) == "cpu: chosen, the package was made for it"

    def test_auto_without_any_is_an_error_with_every_reason(self, installed):
        installed(*CPU)
        with pytest.raises(ProviderError, match=r"no provider can run this package: cuda: not.*; dml: not.*; cpu: not"):
            choose("auto", "cuda", failing("cuda", "dml", "cpu"))


class TestRemedies:
    def test_another_build_is_installed(self, installed):
        installed(*CUDA, platform="win32")
        assert remedy("dml") == (
            f"run: pip uninstall -y onnxruntime-gpu onnxruntime-genai-cuda && {install_command('directml')}"
        )

    def test_nothing_is_installed(self, installed):
        installed()
        assert remedy("cuda") == f"run: {install_command('cuda')}"

    def test_the_right_build_is_installed(self, installed):
        installed(*CUDA)
        assert "nvidia-smi" in remedy("cuda")
        installed(*DIRECTML, platform="win32")
        assert "dxdiag" in remedy("dml")

    def test_other_systems(self, installed):
        installed(*CPU, platform="linux")
        assert remedy("dml") == "DirectML exists on Windows only; take --provider cuda or cpu"
        installed(*CPU, platform="darwin")
        assert remedy("cuda") == "CUDA exists on Linux and Windows only; take --provider cpu"

    def test_other_providers(self):
        assert "install the ONNX Runtime build that has QNN" in remedy("QNN")


class TestWheels:
    def test_wheels_that_share_a_module_clash(self, installed):
        assert clashing_wheels(CPU) == []
        assert clashing_wheels([*CPU, *CUDA]) == [(CPU[0], CUDA[0]), (CPU[1], CUDA[1])]
        installed(*CPU)
        check_wheels()

    def test_a_clash_is_refused_with_the_commands_that_mend_it(self, monkeypatch, tmp_path):
        # A wheel is what importlib.metadata finds: give it one more.
        folder = tmp_path / "onnxruntime_directml-1.24.4.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-directml\nVersion: 1.24.4\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(ProviderError) as caught:
            check_wheels()
        message = str(caught.value)
        assert "onnxruntime-directml 1.24.4 overwrite each other's module onnxruntime" in message
        assert "pip uninstall -y onnxruntime onnxruntime-directml onnxruntime-genai && pip install" in message

    def test_a_clash_refuses_the_named_gpu_and_leaves_the_cpu_alone(self, installed):
        installed(*CPU, CUDA[0])
        with pytest.raises(
            ProviderError, match=r"overwrite each other's module onnxruntime; run: .*\[cuda\]"
        ) as caught:
            choose("cuda", "cpu", failing())
        assert caught.value.exit_code == 3
        assert choose("cpu", "cuda", failing())[1].provider == "cpu"
        assert choose("auto", "cuda", failing("cuda", "dml"))[1].provider == "cpu"

    def test_the_warning_names_every_clash_in_one_line(self, installed):
        installed(*CPU)
        assert wheel_warning() is None
        installed(*CPU, *CUDA)
        assert wheel_warning() == (
            "onnxruntime 1.32.0 and onnxruntime-gpu 1.32.0 overwrite each other's module onnxruntime, "
            "onnxruntime-genai 0.18.0 and onnxruntime-genai-cuda 0.18.0 overwrite each other's module "
            "onnxruntime_genai, so the GPU's provider may be missing; run: pip uninstall -y onnxruntime "
            "onnxruntime-genai onnxruntime-gpu onnxruntime-genai-cuda && "
            f"{install_command('cpu')} (or [cuda], or [directml])"
        )

    def test_no_wheel_at_all(self, monkeypatch, installed):
        installed()
        monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
        with pytest.raises(ProviderError) as caught:
            import_genai()
        assert str(caught.value) == (
            f"onnxruntime_genai is not installed; run: {install_command('cpu')} (or [cuda], or [directml])"
        )

    def test_what_is_left_of_an_overwritten_wheel(self, monkeypatch):
        # pip leaves an empty folder, which Python imports as a module without content.
        monkeypatch.setitem(sys.modules, "onnxruntime_genai", ModuleType("onnxruntime_genai"))
        with pytest.raises(ProviderError, match="onnxruntime_genai is damaged, its files are gone; run: pip"):
            import_genai()


class TestOnnxRuntime:
    def test_the_cpu_is_always_there(self):
        assert resolve_ort_providers("cpu") == ["CPUExecutionProvider"]

    def test_a_provider_that_is_not_built_in_is_an_error(self, monkeypatch):
        import onnxruntime

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(ProviderError, match=r"provider cuda cannot run here: onnxruntime .* has CPUExec"):
            resolve_ort_providers("cuda")
        assert resolve_ort_providers("auto") == ["CPUExecutionProvider"]

    def test_auto_prefers_a_gpu(self, monkeypatch):
        import onnxruntime

        both = ["DmlExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
        assert resolve_ort_providers("auto") == ["CUDAExecutionProvider", "CPUExecutionProvider"]
        assert resolve_ort_providers("dml") == ["DmlExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(("asked", "expected"), [("", "1"), ("0", "1"), ("1", "None")])
def test_telemetry_is_off_unless_asked_for(asked, expected):
    code = "import os; from phi3_onnx.runtime.providers.imports import import_genai; import_genai();"
    code += "print(os.environ.get('ORT_DISABLE_TELEMETRY'))"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment[imports.TELEMETRY_VARIABLE] = asked
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == expected


def test_the_runtime_imports_neither_torch_nor_transformers_nor_onnx():
    code = (
        "import sys; import phi3_onnx.runtime, phi3_onnx.runtime.engines.genai, phi3_onnx.runtime.engines.session;"
        "print([name for name in ('torch', 'transformers', 'onnx', 'rich', 'jinja2', 'onnxruntime') "
        "if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
