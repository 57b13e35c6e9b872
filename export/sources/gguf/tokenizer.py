"""The tokenizer inside a GGUF file, as Hugging Face's files: tokenizer.json, tokenizer_config.json, the chat template.

Two kinds exist for the supported architectures: `gpt2`, byte-level BPE with its merges and the name of a pre-tokenizer,
and `llama`, SentencePiece BPE, whose merges follow from the pieces' scores. What a GGUF leaves out (how text is split
before merging, which added tokens swallow the space behind them) is in the tables here, each with its source.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....configs.errors import SourceError
from ..tokenizer_files import BYTE_LEVEL_CLASS, SENTENCEPIECE_CLASS, TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, to_json

# Token types, `llama_token_type` in llama.h.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = range(1, 5)
_ADDED = (_UNKNOWN, _CONTROL, _USER_DEFINED)
_SPACE = "▁"

# Regexes as the models' own tokenizer.json files have them (quoted as "original" in llama.cpp's src/llama-vocab.cpp).
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _sequence(*steps: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _split(*patterns: str) -> dict[str, Any]:
    steps = [{"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False} for p in patterns]
    return _sequence(*steps, _byte_level(use_regex=False))


@dataclass(frozen=True)
class PreTokenizer:
    """How byte-level BPE splits text before it merges, and what comes with that in llama.cpp's table."""

    json: Mapping[str, Any] | None
    """`pre_tokenizer` of tokenizer.json; None where text is not split."""
    ignore_merges: bool = False
    """Whether a piece that is a token as a whole is taken without merging."""
    add_bos: bool = False
    """Whether text starts with the bos token, unless the file says otherwise."""


_BYTE_LEVEL_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_UNSPLIT = PreTokenizer(None)
_WORDS = PreTokenizer(_byte_level(use_regex=True))
# The models' own files say `Digits` and `ByteLevel` with its built-in regex. These two splits mean the same, and GenAI
# 0.18 follows them for digits of every script, where it takes `Digits` to be the ASCII ones.
_WORDS_AND_DIGITS = PreTokenizer(_split(r"\p{N}", _GPT2))
_LLAMA3 = PreTokenizer(_split(_CL100K), ignore_merges=True, add_bos=True)
_CL100K_PLAIN = PreTokenizer(_split(_CL100K))
_GPT4O = PreTokenizer(_split(_O200K))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": _WORDS,
    "phi-2": _WORDS,
    "olmo": _WORDS,
    "mpt": _WORDS,
    "mellum": _WORDS,
    "smollm": _WORDS_AND_DIGITS,
    "starcoder": _WORDS_AND_DIGITS,
    "refact": _WORDS_AND_DIGITS,
    "codeshell": _WORDS_AND_DIGITS,
    "minerva-7b": _WORDS_AND_DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "dbrx": _CL100K_PLAIN,  # Phi-4
    "smaug-bpe": _CL100K_PLAIN,
    "gpt-4o": _GPT4O,  # Phi-4-mini
    "tekken": PreTokenizer(_split(_TEKKEN), ignore_merges=True, add_bos=True),
}
"""`tokenizer.ggml.pre` -> how text is split; the names and their kinds are those of llama.cpp's src/llama-vocab.cpp.

Its `default`, which stands for "not known", is not among them: GenAI cannot run those regexes.
"""

# End tokens by their text, as llama.cpp knows them; each counts where it is an added token (some converters typed them
# as control tokens, some as user-defined), the first kind where the chat template uses it, too.
_END_OF_TURN = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "</s>")
_END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>")
# Phi-3's added tokens swallow the white space behind them, but for these; a GGUF does not say so, so llama.cpp has
# the rule in its code, too ("Handle per token attributes").
_PHI3_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")


class GgufTokenizer:
    """The tokenizer that a GGUF's metadata describes."""

    def __init__(self, metadata: Mapping[str, Any], where: str) -> None:
        """Check the metadata.

        Raises:
            SourceError: a needed key is missing or makes no sense, or the tokenizer is of a kind that is not supported.

        """
        self._metadata, self._where = metadata, where
        kind = self._get("model", str)
        if kind not in ("gpt2", "llama"):
            raise SourceError(f"{where}: tokenizer {kind!r} is not supported; supported: gpt2, llama")
        self._sentencepiece = kind == "llama"
        self._pre = _UNSPLIT if self._sentencepiece else self._pre_tokenizer()
        self.tokens: Sequence[str] = self._get("tokens", list)
        self._types: Sequence[int] = self._per_token("token_type", _NORMAL)
        if len(set(self.tokens)) != len(self.tokens):
            raise SourceError(
                f"{where}: tokenizer.ggml.tokens has {len(self.tokens) - len(set(self.tokens))} duplicates"
            )

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts a text; None where there is none."""
        return self._id("bos_token_id", 1)

    @property
    def eos_token_id(self) -> int | None:
        """The end token that the file names itself; None where there is none."""
        return self._id("eos_token_id", 2)

    @property
    def pad_token_id(self) -> int | None:
        """The token for padding; None where there is none."""
        return self._id("padding_token_id", None)

    @property
    def chat_template(self) -> str | None:
        """The chat template, as Jinja; None where the model has none."""
        template = self._metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) and template else None

    def end_token_ids(self) -> list[int]:
        """Return every token that ends an answer: the file's own first, then those that the chat template uses."""
        ids = [self.eos_token_id, self._id("eot_token_id", None)]
        template = self.chat_template or ""
        for i, token in enumerate(self.tokens):
            ends = token in _END_OF_TEXT or (token in _END_OF_TURN and token in template)
            if ends and self._types[i] in _ADDED:
                ids.append(i)
        return list(dict.fromkeys(i for i in ids if i is not None))

    def files(self, context: int) -> dict[str, bytes]:
        """Return the tokenizer's files by name, for a model with a context of so many tokens."""
        files = {TOKENIZER: to_json(self._tokenizer()), TOKENIZER_CONFIG: to_json(self._config(context))}
        if self.chat_template:
            files[TEMPLATE] = self.chat_template.encode("utf-8")
        return files

    def _tokenizer(self) -> dict[str, Any]:
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [self._added_token(i) for i, kind in enumerate(self._types) if kind in _ADDED],
            "normalizer": _sentencepiece_normalizer(prefix=self._prefix) if self._sentencepiece else None,
            "pre_tokenizer": self._pre.json,
            "post_processor": self._post_processor(),
            "decoder": _sentencepiece_decoder(prefix=self._prefix) if self._sentencepiece else _BYTE_LEVEL_DECODER,
            "model": self._model(),
        }

    def _model(self) -> dict[str, Any]:
        unknown = self._id("unknown_token_id", 0) if self._sentencepiece else None
        model: dict[str, Any] = {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else self._content(unknown),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": self._sentencepiece,
            "byte_fallback": self._sentencepiece,
            # Rows that the converter filled up with are tokens of no text.
            "vocab": {self._content(i): i for i, token in enumerate(self.tokens) if token != f"[PAD{i}]"},
            "merges": self._merges(),
        }
        if self._pre.ignore_merges:
            model["ignore_merges"] = True
        return model

    def _merges(self) -> list[str]:
        if not self._sentencepiece:
            return self._get("merges", list)
        pieces = {token: i for i, token in enumerate(self.tokens) if self._types[i] == _NORMAL}
        return sentencepiece_merges(pieces, self._per_token("scores", None))

    def _added_token(self, i: int) -> dict[str, Any]:
        swallows = self._is_phi3 and self.tokens[i] not in _PHI3_KEEPS_SPACE
        return {
            "id": i,
            "content": self._content(i),
            "single_word": False,
            "lstrip": False,
            "rstrip": swallows,
            "normalized": False,
            "special": self._types[i] != _USER_DEFINED,
        }

    def _post_processor(self) -> dict[str, Any]:
        around = {
            name: id_ for name, id_ in (("bos", self.bos_token_id), ("eos", self.eos_token_id)) if id_ is not None
        }
        special = {name: self._content(id_) for name, id_ in around.items() if self._adds(name)}

        def wrapped(text: str, type_id: int) -> list[dict[str, Any]]:
            start, end = (
                [{"SpecialToken": {"id": special[name], "type_id": type_id}}] if name in special else []
                for name in ("bos", "eos")
            )
            return [*start, {"Sequence": {"id": text, "type_id": type_id}}, *end]

        return {
            "type": "TemplateProcessing",
            "single": wrapped("A", 0),
            "pair": [*wrapped("A", 0), *wrapped("B", 1)],
            "special_tokens": {
                content: {"id": content, "ids": [around[name]], "tokens": [content]}
                for name, content in special.items()
            },
        }

    def _config(self, context: int) -> dict[str, Any]:
        unknown = self._id("unknown_token_id", 0)
        ids = {"bos": self.bos_token_id, "eos": self.eos_token_id, "pad": self.pad_token_id, "unk": unknown}
        return {
            "add_bos_token": self._adds("bos"),
            "add_eos_token": self._adds("eos"),
            **{f"{name}_token": self._content(id_) for name, id_ in ids.items() if id_ is not None},
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
            "tokenizer_class": SENTENCEPIECE_CLASS if self._sentencepiece else BYTE_LEVEL_CLASS,
        }

    @property
    def _prefix(self) -> bool:
        """Whether SentencePiece puts a space before the text."""
        return self._get("add_space_prefix", bool, True)

    @property
    def _is_phi3(self) -> bool:
        name = str(self._metadata.get("general.name", "")).lower().replace("-", "")
        return self._sentencepiece and (self._metadata.get("general.architecture") == "phi3" or "phi3" in name)

    def _adds(self, name: str) -> bool:
        """Whether `bos` or `eos` is put around every text."""
        default = name == "bos" and (self._sentencepiece or self._pre.add_bos)
        return self._get(f"add_{name}_token", bool, default)

    def _content(self, i: int) -> str:
        """Return the text of a token, as tokenizer.json has it."""
        token = self.tokens[i]
        # An added token is found in the text before spaces are replaced.
        return token.replace(_SPACE, " ") if self._sentencepiece and self._types[i] == _USER_DEFINED else token

    def _pre_tokenizer(self) -> PreTokenizer:
        name = self._get("pre", str, "default")
        if name == "default":
            raise SourceError(
                f"{self._where} does not say how its tokenizer splits text (tokenizer.ggml.pre); "
                "convert the model again with a llama.cpp of today, or export the original checkpoint"
            )
        if name not in PRE_TOKENIZERS:
            known = ", ".join(sorted(PRE_TOKENIZERS))
            raise SourceError(f"{self._where}: pre-tokenizer {name!r} is not supported; supported: {known}")
        return PRE_TOKENIZERS[name]

    def _get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, kind):
            raise SourceError(
                f"{self._where}: tokenizer.ggml.{key} must be of type {kind.__name__}, got {type(value).__name__}"
            )
        return value

    def _per_token(self, key: str, default: Any) -> list[Any]:
        values = self._get(key, list, None if default is None else [default] * len(self.tokens))
        if len(values) != len(self.tokens):
            raise SourceError(
                f"{self._where}: tokenizer.ggml.{key} has {len(values)} values for {len(self.tokens)} tokens"
            )
        return values

    def _id(self, key: str, sentencepiece_default: int | None) -> int | None:
        id_ = self._metadata.get(f"tokenizer.ggml.{key}", sentencepiece_default if self._sentencepiece else None)
        if id_ is not None and not (isinstance(id_, int) and 0 <= id_ < len(self.tokens)):
            raise SourceError(
                f"{self._where}: tokenizer.ggml.{key} must be a token id below {len(self.tokens)}, got {id_!r}"
            )
        return id_


def sentencepiece_merges(pieces: Mapping[str, int], scores: Sequence[float]) -> list[str]:
    """Return the merges of a SentencePiece BPE model, first merge first, from its pieces' ids and scores.

    A pair of pieces merges if it spells a piece, the sooner the higher that piece's score; ties go by the ids of the
    pair. That order gives Llama's own 61,249 merges exactly (compared with those of its tokenizer.json).
    """
    merges: list[tuple[float, int, int, str]] = []
    for piece, i in pieces.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                merges.append((-scores[i], pieces[left], pieces[right], f"{left} {right}"))
    return [merge for *_, merge in sorted(merges)]


def _sentencepiece_normalizer(*, prefix: bool) -> dict[str, Any]:
    # As in Phi-3's own tokenizer.json: each stretch of text between added tokens gets the space before it.
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _SPACE}, spaces] if prefix else [spaces]}


def _sentencepiece_decoder(*, prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
