"""Before a package's first use on a provider, device and version: its self-test is replayed there, and has to pass."""

import logging
import time
from collections.abc import Callable

from ...configs import SelfTestError
from ..decoding.engine import Engine
from ..package import Package
from .record import keep_proof, kept_proof, key_of
from .replay import replay
from .self_test import SelfTest, read_self_test

Notify = Callable[[str], None]
_LOG = logging.getLogger(__name__)


class Prover:
    """Proves the engines of one package, each where this machine has not proven it yet."""

    def __init__(self, package: Package, *, device: int | None = None, notify: Notify | None = None) -> None:
        """Read the package's self-test; without one there is nothing to prove.

        Args:
            package: the package.
            device: number of the GPU that is asked for.
            notify: called with a line for each replay; by default it goes to the log.

        Raises:
            PackageError: the self-test is damaged.

        """
        self._package = package
        self._device = device
        self._notify = notify or _LOG.info
        self._self_test: SelfTest | None = read_self_test(package.folder, package.contract.vocab_size)

    def __call__(self, engine: Engine, provider: str) -> None:
        """Let an engine pass that computes as the package's reference does, now or when it was tried before.

        Args:
            engine: the loaded package.
            provider: where it runs, by this project's name.

        Raises:
            SelfTestError: it computes wrongly, or fails; with the figures. It is tried again at the next load.

        """
        if self._self_test is None:
            return
        key = key_of(self._package.folder, engine.name, provider, self._device)
        known = kept_proof(key)
        if known and known.passed:
            return
        started = time.perf_counter()
        verdict = replay(self._self_test, engine)
        keep_proof(key, passed=verdict.passed, verdict=str(verdict))
        if not verdict.passed:
            what = "fails its self-test" if verdict.problem else "is computed wrongly"
            raise SelfTestError(
                f"{self._package.name} {what} on {provider} by {engine.name}: {verdict}",
                remedy="take another --provider or version, or --no-self-test to use it nevertheless",
            )
        self._notify(
            f"self-test on {provider}, {engine.name}: passed in {time.perf_counter() - started:.1f} s, "
            "once for this package and these versions"
        )
