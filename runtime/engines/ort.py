"""The engine on plain ONNX Runtime: the one that decodes several texts together."""

import numpy as np

from ...configs import EngineError, PackageError
from ..decoding.engine import GuidedDraws, Prove
from ..package import Package
from ..providers.choice import ProviderChoice
from ..providers.imports import import_onnxruntime
from ..providers.names import canonical, ort_name
from .session import CACHE_DEVICES, LogitsSession, open_session
from .slots import SlotPool, SlotSequence

_PROVIDERS = ("cpu", "cuda")
# The engine on GenAI has the figures behind these.
_CPU_CHUNK, _GPU_CHUNK = 128, 512
# Measured on the CPU, on tiny packages of all kinds and the small real model: right rows differ by at most 0.0006
# (float16; 0 in float32 and with int8 activations), a row that is taken for longer than it is by 0.48 to 6.3.
_TOLERANCE = 0.1
_TRIAL_LENGTHS = (3, 8)


def load_ort_engine(
    package: Package,
    provider: str,
    *,
    threads: int | None = None,
    device: int | None = None,
    prove: Prove | None = None,
    rows: bool = True,
) -> tuple["OrtEngine", ProviderChoice]:
    """Load a package in plain ONNX Runtime on the provider named, or with `auto` on the first that runs it.

    Args:
        package: the package.
        provider: `auto`, `cpu`, or `cuda`.
        threads: threads of one operator on the CPU; by default the physical cores.
        device: number of the GPU.
        prove: tries each engine before it is taken; `auto` goes on to the next provider where it raises.
        rows: whether several texts at a time are to be run.

    Raises:
        UsageError: there is no such provider.
        ProviderError: the provider cannot run here, or `prove` refuses it; the message has the remedy.
        PackageError: the package cannot be loaded, or not be run on several texts at a time.

    """
    wanted = canonical(provider)
    if (
        wanted == "auto"
        and package.made_for
        and ort_name(package.made_for) in import_onnxruntime().get_available_providers()
    ):
        wanted = package.made_for
    if wanted not in ("auto", *_PROVIDERS):
        raise PackageError(f"onnxruntime without GenAI runs texts on {' and '.join(_PROVIDERS)} only, not on {wanted}")
    if package.contract.sliding_window is not None:
        raise PackageError("its graph leaves the sliding window to ONNX Runtime GenAI")
    session, choice = open_session(
        package.folder,
        provider,
        made_for=package.made_for,
        longrope=package.longrope_switch or 0,
        threads=threads,
        device=device,
        prove=(lambda session, name: prove(OrtEngine(session), name)) if prove else None,
    )
    engine = OrtEngine(session)
    if rows:
        check_rows(engine)
    return engine, choice


class OrtEngine:
    """A package loaded by `onnxruntime`."""

    continuous = True
    chooses = False
    guides = False

    def __init__(self, session: LogitsSession) -> None:
        """Take a loaded package."""
        self.name = f"onnxruntime {import_onnxruntime().__version__}"
        self.prefill_chunk = _GPU_CHUNK if session.provider in CACHE_DEVICES else _CPU_CHUNK
        self._session: LogitsSession | None = session

    @property
    def session(self) -> LogitsSession:
        """The loaded graph.

        Raises:
            EngineError: the engine was closed.

        """
        if self._session is None:
            raise EngineError("the model was closed")
        return self._session

    def open(self, capacity: int, guided: GuidedDraws | None = None) -> SlotSequence:
        """Start a sequence in a cache of its own; see `Engine.open`."""
        return self.pool(1, capacity).open(capacity, guided)

    def pool(self, slots: int, capacity: int) -> SlotPool:
        """Reserve one cache for several sequences of `capacity` tokens at most, which are then run together.

        Raises:
            EngineError: it cannot be reserved, or the engine was closed.

        """
        return SlotPool(self.session, slots, capacity, name=self.name, prefill_chunk=self.prefill_chunk)

    def close(self) -> None:
        """Give the model's memory back."""
        self._session = None


def check_rows(engine: OrtEngine) -> None:
    """Run two texts of unequal lengths together and each alone.

    Raises:
        PackageError: the graph cannot, or the logits differ: it takes both for equally long, or the like.

    """
    try:
        together, alone = _trial_logits(engine, rows=2), _trial_logits(engine, rows=1)
    except EngineError as error:
        raise PackageError(f"the graph does not run on several texts at a time: {error}") from error
    apart = np.sqrt(np.mean((together - alone) ** 2, axis=1)) / alone.std(axis=1)
    if not (apart < _TOLERANCE).all():  # NaN is no match either
        raise PackageError(
            f"the graph computes several texts at a time wrongly: logits differ by {apart.max():.2g} of their spread "
            f"from those of each alone"
        )


def _trial_logits(engine: OrtEngine, rows: int) -> np.ndarray:
    """Return the logits after one more token on each text, float32 [texts, vocabulary], with `rows` in one cache."""
    prompts = [[1 + 5 * i + length for i in range(length)] for length in _TRIAL_LENGTHS]
    logits = []
    for first in range(0, len(prompts), rows):
        pool = engine.pool(rows, max(_TRIAL_LENGTHS) + 1)
        sequences = [pool.open(pool.capacity) for _ in range(rows)]
        for sequence, prompt in zip(sequences, prompts[first:], strict=False):
            sequence.append(prompt)
        for sequence in sequences:
            sequence.append([7])
        logits += [sequence.logits() for sequence in sequences]
    return np.stack(logits)
