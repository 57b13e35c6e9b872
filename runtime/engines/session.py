"""A package in plain ONNX Runtime: logits of every position, and greedy tokens, with no generation library between."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...configs import PackageError, ProviderError, UsageError
from ..package import layer_bytes, longrope_switch, read_contract
from ..providers import plugins
from ..providers.choice import ProviderChoice, choose, refusals, remedy, resolve_ort_providers
from ..providers.imports import import_onnxruntime, load_libraries
from ..providers.known_faults import refuse_known_faults
from ..providers.names import canonical
from ..providers.placement import ask_for_placement, check_placement, read_placement
from .cpu_options import cpu_options

_CPU = "CPUExecutionProvider"
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
CACHE_DEVICES = {"CUDAExecutionProvider": "cuda"}
"""Where a provider keeps the KV cache between runs; the others' goes back to the CPU after each."""
SHARED_CACHES = {"DmlExecutionProvider": "dml"}
"""Providers whose attention reads past keys only from a buffer that the present ones share, and where that is.

It takes several tokens for the beginning of a text, so a prompt is one run there, and then one token a run.
"""
_NUMBERED = ("CUDAExecutionProvider", "DmlExecutionProvider")
"""Providers whose option `device_id` is the number of the GPU."""


class LogitsSession:
    """A package's graph in an `onnxruntime.InferenceSession`, batch size 1."""

    def __init__(
        self,
        package: Path,
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int | None = None,
        longrope: int | None = None,
        device: int | None = None,
    ) -> None:
        """Load a package.

        Args:
            package: its folder.
            providers: ONNX Runtime's execution providers, the wanted one first.
            threads: threads within one operator on the CPU; by default the physical cores.
            longrope: tokens after which the graph changes its rotary factors; by default what `config.json` says.
            device: number of the GPU, for CUDA and DirectML.

        Raises:
            PackageError: the package cannot be loaded.
            ProviderError: ONNX Runtime here does not run the first of the providers.

        """
        self.contract = read_contract(package)
        self.longrope = longrope_switch(package) if longrope is None else longrope
        self.inference: Any = _open(
            package / self.contract.filename, providers, threads, device, layer_bytes(package, self.contract)
        )
        """The `onnxruntime.InferenceSession`."""
        self.device = device or 0
        self.provider: str = self.inference.get_providers()[0]
        """The execution provider that the graph runs on."""
        self.placement = None if self.provider == _CPU else read_placement(self.inference, self.provider)
        """Where the graph's nodes landed; None on the CPU, and where ONNX Runtime does not say."""
        self._inputs = {value.name: value for value in self.inference.get_inputs()}
        self._check_names()
        self.io_dtype = self._dtype(self.contract.past_names()[0])
        """numpy dtype of the KV cache."""
        shape = self._output_shape(self.contract.outputs["logits"])
        self.last_token_only = len(shape) == 3 and shape[1] == 1
        """Whether a run returns the logits of its last token only."""

    def logits(
        self, ids: np.ndarray, *, chunk: int = 256, first: int | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the logits of every position of a sequence, in order; the KV cache goes from run to run.

        Args:
            ids: token ids, [tokens].
            chunk: tokens in one run, and so rows in one array.
            first: tokens in the first run, which has no cache; by default `chunk`. A sequence that needs LongRoPE's
                long factors has more of them, since keys cached under the short factors would be wrong. DirectML runs
                the whole sequence at once.

        Yields:
            The first position and float32 [positions, vocabulary]. A graph that returns its last token's logits only
            is run token by token.

        Raises:
            UsageError: there are no tokens, or more than the model's context.
            PackageError: such a graph is asked for more tokens than LongRoPE's short factors reach.

        """
        ids = self._checked(ids)
        if self.last_token_only:
            chunk = first = 1
        elif self.provider in SHARED_CACHES:
            chunk = first = len(ids)
        stop = max(first or chunk, self._least_prefill(len(ids)))
        if self.last_token_only and stop > 1:
            raise PackageError(
                f"the graph returns its last token's logits only, so no sequence of more than {self.longrope} tokens, "
                "where its rotary factors change, can be compared position by position; use a target without "
                "last_token_logits"
            )
        start, cache = 0, self._empty_cache(len(ids))
        while start < len(ids):
            logits, cache = self._run(ids[start:stop], start, cache)
            if len(logits) != len(ids[start:stop]):  # seen only in the first run: the shape did not tell
                self.last_token_only = True
                yield from self.logits(ids)
                return
            yield start, logits
            start, stop = stop, stop + chunk

    def greedy(self, ids: np.ndarray, steps: int, *, notify: Callable[[int], None] | None = None) -> np.ndarray:
        """Continue a sequence with the most likely token at each step, past end tokens too.

        Where the sequence outgrows LongRoPE's short factors, the cache is computed anew under the long ones.

        Args:
            ids: token ids of the prompt, [tokens].
            steps: how many tokens to add.
            notify: called after each step with the tokens so far.

        Returns:
            The tokens added, int64 [steps].

        Raises:
            UsageError: the prompt is empty, or prompt and steps are more than the model's context.

        """
        sequence = np.concatenate([self._checked(ids), np.zeros(steps, dtype=np.int64)])
        self._checked(sequence)
        cached, cache = 0, self._empty_cache(len(sequence))
        for length in range(len(ids), len(sequence)):
            if cached <= (self.longrope or 0) < length:
                cached, cache = 0, self._empty_cache(len(sequence))
            logits, cache = self._run(sequence[cached:length], cached, cache)
            cached = length
            sequence[length] = logits[-1].argmax()
            if notify:
                notify(length + 1 - len(ids))
        return sequence[len(ids) :]

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids, dtype=np.int64)
        if ids.ndim != 1 or not 0 < len(ids) <= self.contract.context_length:
            expected = f"1 to {self.contract.context_length} token ids"
            raise UsageError(f"a sequence must hold {expected}, got an array of shape {ids.shape}")
        return ids

    def _least_prefill(self, length: int) -> int:
        return self.longrope + 1 if self.longrope is not None and length > self.longrope else 0

    def _empty_cache(self, capacity: int) -> list[Any]:
        device = SHARED_CACHES.get(self.provider)
        shape = (1, self.contract.num_kv_heads, capacity if device else 0, self.contract.head_dim)
        new = import_onnxruntime().OrtValue.ortvalue_from_numpy
        return [
            new(np.zeros(shape, dtype=self.io_dtype), device or "cpu", self.device) for _ in self.contract.past_names()
        ]

    def _run(self, ids: np.ndarray, start: int, cache: list[Any]) -> tuple[np.ndarray, list[Any]]:
        contract, binding = self.contract, self.inference.io_binding()
        for name, value in self.feeds(ids[None], [start]).items():
            binding.bind_cpu_input(name, value)
        for name, past in zip(contract.past_names(), cache, strict=True):
            binding.bind_ortvalue_input(name, past)
        binding.bind_output(contract.outputs["logits"], "cpu")
        for name, past in zip(contract.present_names(), cache, strict=True):
            if self.provider in SHARED_CACHES:
                binding.bind_ortvalue_output(name, past)
            else:
                binding.bind_output(name, CACHE_DEVICES.get(self.provider, "cpu"))
        try:
            self.inference.run_with_iobinding(binding)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise PackageError(f"the graph fails on tokens {start} to {start + len(ids) - 1}: {reason}") from error
        logits, *present = binding.get_outputs()
        # A shared cache is kept by what made it: its outputs do not hold the memory.
        cache = cache if self.provider in SHARED_CACHES else present
        return logits.numpy()[0].astype(np.float32, copy=False), cache

    def feeds(self, ids: np.ndarray, starts: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the graph's inputs but the KV cache, by name: token ids, attention mask, and positions if it has them.

        Args:
            ids: token ids of one run, int64 [rows, tokens].
            starts: how many tokens each row has in the cache, [rows].

        """
        stops = np.asarray(starts)[:, None] + ids.shape[1]
        values = {
            "input_ids": ids,
            # Rows of unequal lengths end in zeros: the graphs count the ones, and take the width for the longest row.
            "attention_mask": np.arange(stops.max()) < stops,
            "position_ids": stops + np.arange(-ids.shape[1], 0),
        }
        feeds = {}
        for key, value in values.items():
            if (name := self.contract.inputs.get(key)) in self._inputs:
                integer = np.int32 if self._inputs[name].type == "tensor(int32)" else np.int64
                feeds[name] = np.ascontiguousarray(value, dtype=integer)
        return feeds

    def _check_names(self) -> None:
        known = {*self._inputs, *(value.name for value in self.inference.get_outputs())}
        wanted = [self.contract.inputs.get("input_ids", "input_ids"), self.contract.outputs.get("logits", "logits")]
        wanted += self.contract.past_names() + self.contract.present_names()
        if missing := [name for name in wanted if name not in known]:
            raise PackageError(
                f"{self.contract.filename} has no input or output {missing[0]!r}, which genai_config.json names "
                f"({len(missing)} such)"
            )

    def _dtype(self, name: str) -> Any:
        kind = self._inputs[name].type
        if kind not in _DTYPES:
            raise PackageError(f"the graph's input {name} is {kind}; supported: {', '.join(_DTYPES)}")
        return _DTYPES[kind]

    def _output_shape(self, name: str) -> Sequence[Any]:
        return next(value.shape for value in self.inference.get_outputs() if value.name == name)


def open_session(
    package: Path,
    provider: str,
    *,
    made_for: str | None = None,
    longrope: int | None = None,
    threads: int | None = None,
    device: int | None = None,
    prove: Callable[[LogitsSession, str], None] | None = None,
) -> tuple[LogitsSession, ProviderChoice]:
    """Load a package on the provider named, or with `auto` on the first that runs it.

    Args:
        package: its folder.
        provider: `cpu`, `cuda`, `dml`, another that ONNX Runtime knows by name, or `auto`.
        made_for: the provider that the package was made for, which `auto` tries first.
        longrope: as `LogitsSession` takes it.
        threads: likewise.
        device: likewise.
        prove: tries each session on its provider before it is taken; where it raises ProviderError, that provider
            cannot run here.

    Returns:
        The session, and why it runs on this provider and on no other.

    Raises:
        UsageError: there is no such provider.
        ProviderError: it cannot run here; the message has the remedy.
        PackageError: the package cannot be loaded.

    """

    def attempt(name: str) -> LogitsSession:
        with refusals(goes_on=name != "cpu" and canonical(provider) == "auto"):
            names = resolve_ort_providers(name)
            session = LogitsSession(package, providers=names, longrope=longrope, threads=threads, device=device)
            if name != "cpu":  # a provider can load a graph and yet fail in it, or leave all of it to the CPU's
                check_placement(session.placement)
                next(session.logits(np.zeros(1)))
            if prove:
                prove(session, name)
            return session

    session, choice = choose(provider, made_for, attempt)
    return session, replace(choice, placement=session.placement)


def _open(path: Path, providers: Sequence[str], threads: int | None, device: int | None, layer: int) -> Any:
    ort = import_onnxruntime()
    wanted, available = providers[0], ort.get_available_providers()
    if wanted not in available:
        found = f"onnxruntime {ort.__version__} has {', '.join(available)}"
        raise ProviderError(f"{wanted} cannot run here: {found}", remedy=remedy(canonical(wanted)))
    refuse_known_faults(path, canonical(wanted))
    load_libraries(wanted)
    options = cpu_options(layer, threads)
    if os.environ.get("NO_COLOR"):
        options.log_severity_level = 4  # its log has colours always; what stops a run is raised too
    if wanted != _CPU:
        ask_for_placement(options)
    if wanted == "DmlExecutionProvider":
        # DirectML's terms: https://onnxruntime.ai/docs/execution-providers/DirectML-ExecutionProvider.html
        options.enable_mem_pattern = False
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    try:
        if wanted in plugins.providers():
            plugins.add_to(options, ort, wanted, device)
            session = ort.InferenceSession(str(path), options)
        else:
            # Named always: without a number DirectML asks DXCore, which older Windows 10 has not.
            gpu = {"device_id": str(device or 0)} if wanted in _NUMBERED else {}
            session = ort.InferenceSession(str(path), options, providers=[(wanted, gpu), *providers[1:]])
    except ProviderError:
        raise
    except Exception as error:  # onnxruntime's own errors have no common base but this
        reason = " ".join(str(error).split())
        raise PackageError(f"{path} cannot be loaded by onnxruntime {ort.__version__}: {reason}") from error
    # A provider whose libraries are missing is left out with no more than a line in the log.
    if session.get_providers()[0] != wanted:
        raise ProviderError(f"{wanted} did not start", remedy=remedy(canonical(wanted)))
    return session
