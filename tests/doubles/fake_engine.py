"""A model without weights for the server's tests, in a module of its own: the engine's process has to import it.

What it answers depends on nothing but the text. To a chat it does what the last message of the user says (see `_says`);
a plain text it continues with the rest of the alphabet.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from phi3_onnx.configs import EngineError
from phi3_onnx.runtime import Model
from phi3_onnx.runtime.decoding.engine import GuidedDraws
from phi3_onnx.runtime.package import open_package
from phi3_onnx.runtime.text.template import read_template
from phi3_onnx.runtime.text.tokenizer import Tokenizer

_TURN = "<|assistant|>\n"


@dataclass(frozen=True)
class FakeLoader:
    """Loads the fake model on the package in `folder`, written by `write_scripted_package`."""

    folder: Path
    fail: bool = False
    gate: Path | None = None
    """Loading ends when this file is there; `.waits` beside it says that it has begun."""

    def __call__(self) -> Model:
        if self.gate:
            self.gate.with_suffix(".waits").touch()
            while not self.gate.exists():
                time.sleep(0.01)
        if self.fail:
            os._exit(3)
        package = open_package(self.folder)
        tokenizer = Tokenizer(self.folder)
        template = read_template(self.folder, tokenizer.config, tokenizer.special_tokens)
        return Model(package, FakeEngine(tokenizer), tokenizer, template)


class FakeEngine:
    name = "fake"
    prefill_chunk = 16
    continuous = True
    chooses = False
    guides = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def open(self, capacity: int, guided: GuidedDraws | None = None) -> "FakeSequence":
        return FakeSequence(self.tokenizer, capacity)

    def close(self) -> None:
        pass


class FakeSequence:
    waiting = False

    def __init__(self, tokenizer: Tokenizer, capacity: int) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self.capacity = capacity

    def append(self, tokens: Sequence[int]) -> None:
        if len(self._tokens) + len(tokens) > self.capacity:
            raise EngineError(f"{len(tokens)} tokens after {len(self._tokens)} do not fit into {self.capacity}")
        self._tokens += tokens

    def logits(self) -> np.ndarray:
        text = self._tokenizer.decode(self._tokens, skip_special=False)
        question, turn, _ = text.rpartition(_TURN)
        wanted = _says(question.rpartition("<|user|>\n")[2].removesuffix("<|end|>\n")) if turn else _alphabet(text)
        # Tokens, not letters: the answer so far may end within a character.
        prompt = len(self._tokenizer.encode(question + turn, special=False)) if turn else len(self._tokens)
        start = len(self._tokens) - prompt
        following = self._tokenizer.encode(wanted + "<|end|>", special=False)
        logits = np.zeros(self._tokenizer.vocab_size, dtype=np.float32)
        logits[following[min(start, len(following) - 1)]] = 10.0
        logits[self._tokenizer.encode("?", special=False)] = 8.0
        return logits

    def run_logits(self) -> np.ndarray:
        return self.logits()[None]

    def choose_token(self) -> int:
        token = int(self.logits().argmax())
        self._tokens.append(token)
        return token

    def rewind(self, length: int) -> None:
        del self._tokens[length:]

    def close(self) -> None:
        pass


def _alphabet(text: str) -> str:
    return "".join(map(chr, range(ord(text[-1]) + 1, ord("z") + 1))) if text[-1:].islower() else ""


def _says(message: str) -> str:
    """Return the answer to a message, `<command> <text>`; it has to be the same each time it is asked for."""
    command, _, text = message.partition(" ")
    if command == "say":
        return text
    if command == "for-ever":
        time.sleep(0.005)
        return "on and " * 2000
    if command == "wait":  # until a file is there
        while not Path(text).exists():
            time.sleep(0.01)
        return "done"
    if command == "crash":
        os._exit(1)
    if command == "fail":
        raise EngineError("the fake engine was asked to fail")
    return f"You said: {message}"
