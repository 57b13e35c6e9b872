"""What can be timed beside a package: another package, a GGUF file in llama.cpp, a folder for OpenVINO."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from ...configs import PackageError, UsageError, find_package
from ...configs.errors import first_line
from ...runtime import load
from ...runtime.engines.load import EngineChoice
from ...runtime.providers.hardware import default_threads

Kind = Literal["package", "llama.cpp", "openvino"]
OPENVINO_NAME = "openvino_model.xml"
_MODULES: dict[Kind, tuple[str, str]] = {
    "llama.cpp": ("llama_cpp", "llama-cpp-python"),
    "openvino": ("openvino", "openvino"),
}


@dataclass(frozen=True)
class Entry:
    """What takes part, and how it is to run."""

    kind: Kind
    path: Path
    provider: str = "auto"
    engine: EngineChoice = "auto"
    """These two are of packages."""
    threads: int | None = None

    @classmethod
    def named(cls, name: str, **options: Any) -> "Entry":
        """Return what a user named: a `.gguf` file, a folder with `openvino_model.xml`, or a package.

        Raises:
            PackageError: there is no such file, folder or package.
            UsageError: what runs it is not installed.

        """
        path = Path(name).expanduser()
        if path.suffix.lower() == ".gguf":
            kind: Kind = "llama.cpp"
            if not path.is_file():
                raise PackageError(f"there is no file {path}")
        elif (path / OPENVINO_NAME).is_file():
            kind = "openvino"
        else:
            return cls("package", find_package(name), **options)
        module, wheel = _MODULES[kind]
        if find_spec(module) is None:
            raise UsageError(f"{path} runs in {kind}, which is not installed here: pip install {wheel}")
        return cls(kind, path, **options)


class Contender(Protocol):
    """A loaded model that runs one text."""

    name: str
    """Of the model."""
    engine: str
    """What runs it, with its version."""
    vocab_size: int

    def prefill(self, tokens: Sequence[int]) -> None:
        """Forget the text before, and run a prompt up to the logits after it."""
        ...

    def step(self, token: int) -> None:
        """Run one more token up to its logits."""
        ...


def open_contender(entry: Entry, room: int) -> Contender:
    """Load a model.

    Args:
        entry: which, and how.
        room: tokens that a text may have.

    Raises:
        PackageError: it cannot be loaded.
        ProviderError: the provider cannot run here.
        UsageError: the text does not fit into the model's context.

    """
    openers: dict[Kind, Callable[[Entry, int], Contender]] = {
        "package": _PackageContender,
        "llama.cpp": _LlamaContender,
        "openvino": _OpenVinoContender,
    }
    return openers[entry.kind](entry, room)


class _PackageContender:
    def __init__(self, entry: Entry, room: int) -> None:
        self._model = load(
            entry.path, provider=entry.provider, engine=entry.engine, threads=entry.threads, speculate="off"
        )
        self.name, self.engine = self._model.package.name, f"{self._model.engine.name} on {self._model.provider}"
        self.vocab_size = self._model.package.contract.vocab_size
        self._cache, self._room = self._model.new_cache(), room
        self._cache.reserve(room)  # what does not fit is said here

    def prefill(self, tokens: Sequence[int]) -> None:
        self._cache.close()
        self._cache.reserve(self._room)
        for _ in self._cache.prefill(tokens):
            pass
        self._cache.logits()

    def step(self, token: int) -> None:
        self._cache.append(token)
        self._cache.logits().argmax()  # as decoding would


class _LlamaContender:
    def __init__(self, entry: Entry, room: int) -> None:
        module: Any = import_module("llama_cpp")
        threads = entry.threads or default_threads()
        try:
            self._llama = module.Llama(
                str(entry.path),
                n_ctx=room,
                n_batch=room,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=0,
                verbose=False,
            )
        except Exception as error:  # it raises whatever comes up
            raise PackageError(f"llama.cpp cannot load {entry.path}: {first_line(error)}") from error
        self.name, self.engine = entry.path.name, f"llama-cpp-python {module.__version__}"
        self.vocab_size = int(self._llama.n_vocab())

    def prefill(self, tokens: Sequence[int]) -> None:
        self._llama.reset()
        self._llama.eval(list(tokens))

    def step(self, token: int) -> None:
        self._llama.eval([token])


class _OpenVinoContender:
    def __init__(self, entry: Entry, room: int) -> None:
        module: Any = import_module("openvino")
        how = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": entry.threads or default_threads()}
        try:
            compiled = module.Core().compile_model(str(entry.path / OPENVINO_NAME), "CPU", how)
            self._request = compiled.create_infer_request()
            self._names = {name for port in compiled.inputs for name in port.names}
            self.vocab_size = int(compiled.outputs[0].partial_shape[-1].get_length())
        except Exception as error:  # likewise
            raise PackageError(f"OpenVINO cannot load {entry.path}: {first_line(error)}") from error
        if "input_ids" not in self._names:
            raise PackageError(f"{entry.path} has no input input_ids: it is no language model of Optimum's")
        self.name, self.engine = entry.path.name, f"openvino {module.__version__.partition('-')[0]}"
        self._length = 0

    def prefill(self, tokens: Sequence[int]) -> None:
        self._request.reset_state()
        self._length = 0
        self._run(tokens)

    def step(self, token: int) -> None:
        self._run([token])

    def _run(self, tokens: Sequence[int]) -> None:
        stop = self._length + len(tokens)
        feeds = {
            "input_ids": np.asarray([tokens], np.int64),
            "attention_mask": np.ones((1, stop), np.int64),
            "position_ids": np.arange(self._length, stop)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer({name: value for name, value in feeds.items() if name in self._names})
        self._length = stop
