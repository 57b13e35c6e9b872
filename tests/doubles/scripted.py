"""An engine that answers from a script, and a package without a model: to test what is built on `Model`, without one.

After `write_scripted_package(folder)`, the model of `scripted_model(folder, ["Hello!"])` answers "Hello!" to whatever
it is asked first, and has nothing to say after that.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from phi3_onnx.configs import EngineError
from phi3_onnx.runtime.decoding.engine import GuidedDraws
from phi3_onnx.runtime.model import Model
from phi3_onnx.runtime.package import open_package
from phi3_onnx.runtime.text.template import read_template
from phi3_onnx.runtime.text.tokenizer import Tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


class ScriptedEngine:
    """Says one answer after another, each token as the most likely one by far, whatever the prompt is."""

    name = "script"

    def __init__(self, answers: Iterable[Sequence[int]], *, vocab_size: int, end_token: int) -> None:
        """Take the answers as token ids; each ends with `end_token` by itself."""
        self._answers = iter(answers)
        self._end_token = end_token
        self.vocab_size = vocab_size
        self.prefill_chunk = 16
        self.continuous = True
        self.chooses = False
        self.guides = True
        self.runs: list[tuple[int, int]] = []
        """(tokens before, tokens run) of every run of the model."""
        self.opened: list[int] = []
        """The capacity of every sequence opened."""
        self.open_count = 0
        """Sequences that are open now."""
        self.closed = False

    def open(self, capacity: int, guided: GuidedDraws | None = None) -> "ScriptedSequence":
        """Start a sequence; see `Engine.open`."""
        self.opened.append(capacity)
        self.open_count += 1
        return ScriptedSequence(self, capacity)

    def close(self) -> None:
        """Note that it was closed."""
        self.closed = True

    def next_answer(self) -> list[int]:
        """Return the next answer of the script, its end token included."""
        answer = next(self._answers, None)
        if answer is None:
            raise EngineError("the script has no further answer")
        return [*answer, self._end_token]


class ScriptedSequence:
    """A sequence of a `ScriptedEngine`, as strict about lengths as a real one."""

    waiting = False

    def __init__(self, engine: ScriptedEngine, capacity: int) -> None:
        self._engine = engine
        self._tokens: list[int] = []
        self._answer: list[int] | None = None
        self._said = 0
        self._rows = 0
        self.capacity = capacity

    def append(self, tokens: Sequence[int]) -> None:
        """Note the run; see `TokenSequence.append`."""
        if not tokens or len(self._tokens) + len(tokens) > self.capacity:
            raise EngineError(f"{len(tokens)} tokens after {len(self._tokens)} do not fit into {self.capacity}")
        self._engine.runs.append((len(self._tokens), len(tokens)))
        self._tokens += tokens
        self._rows = len(tokens)
        if self._answer is not None and list(tokens) == self._answer[self._said : self._said + 1]:
            self._said += 1
        elif self._answer is None or self._answer[: self._said + 1] != self._tokens[-self._said - 1 :]:
            self._answer = None
        else:  # the whole text was run again, the answer so far included
            self._said += 1

    def logits(self) -> np.ndarray:
        """Return logits that leave no doubt of the script's next token; see `TokenSequence.logits`."""
        if self._answer is None:
            self._answer, self._said = self._engine.next_answer(), 0
        logits = np.zeros(self._engine.vocab_size, dtype=np.float32)
        logits[self._answer[self._said]] = 50.0
        return logits

    def run_logits(self) -> np.ndarray:
        """Return logits that say nothing, one row for each token of the last run; see `TokenSequence.run_logits`."""
        return np.zeros((self._rows, self._engine.vocab_size), dtype=np.float32)

    def choose_token(self) -> int:
        """Return the script's next token; see `TokenSequence.choose_token`."""
        token = int(self.logits().argmax())
        self._said += 1
        self._tokens.append(token)
        return token

    def rewind(self, length: int) -> None:
        """Forget tokens; see `TokenSequence.rewind`."""
        if length > len(self._tokens):
            raise EngineError(f"cannot rewind {len(self._tokens)} tokens to {length}")
        del self._tokens[length:]

    def close(self) -> None:
        """Note that it was closed."""
        self._engine.open_count -= 1


def write_scripted_package(folder: Path, *, context_length: int = 4096) -> None:
    """Write what of a package a scripted model needs: configs, a chat template, and a tokenizer of one token a byte."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    ends = [backend.token_to_id("<|endoftext|>"), backend.token_to_id("<|end|>")]
    decoder = {
        "filename": "model.onnx",
        "head_size": 8,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "inputs": {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
        "outputs": {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
    }
    model = {
        "type": "phi3",
        "context_length": context_length,
        "vocab_size": backend.get_vocab_size(),
        "eos_token_id": ends[0],
        "decoder": decoder,
    }
    files = {
        "genai_config.json": {"model": model, "search": {}},
        "generation_config.json": {"eos_token_id": ends},
        "config.json": {"model_type": "phi3"},
        "tokenizer_config.json": {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"},
    }
    for name, table in files.items():
        (folder / name).write_text(json.dumps(table), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (folder / "model.onnx").touch()


def scripted_model(folder: Path, answers: Iterable[str]) -> Model:
    """Return a model of the package in `folder` that gives these answers, whatever it is asked."""
    package = open_package(folder)
    tokenizer = Tokenizer(folder)
    engine = scripted_engine(tokenizer, answers)
    return Model(package, engine, tokenizer, read_template(folder, tokenizer.config, tokenizer.special_tokens))


def scripted_engine(tokenizer: Tokenizer, answers: Iterable[str]) -> ScriptedEngine:
    """Return an engine that gives these answers, each ending in `<|end|>`."""
    end = tokenizer.encode("<|end|>", special=False)[0]
    encoded = [tokenizer.encode(answer, special=False) for answer in answers]
    return ScriptedEngine(encoded, vocab_size=tokenizer.vocab_size, end_token=end)
