"""Text to token ids and back, on the `tokenizers` library, with the ids that Hugging Face's tokenizers give."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...configs import PackageError, UsageError
from ...configs.errors import first_line
from ...configs.files import read_json

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_INCOMPLETE = "\ufffd"


class Tokenizer:
    """The tokenizer of a package: `tokenizer.json`, with the tokens that `tokenizer_config.json` adds or changes.

    `add_bos_token` and `add_eos_token` of that config do nothing beside a `tokenizer.json`, whose own rule for what
    stands around a text is taken, as transformers 5 does.
    """

    def __init__(self, folder: Path) -> None:
        """Load it.

        Raises:
            PackageError: the files are missing or damaged.

        """
        from tokenizers import Tokenizer as Backend

        path = folder / "tokenizer.json"
        try:
            self._backend: Any = Backend.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise PackageError(f"{path} cannot be read as a tokenizer: {error}") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        path = folder / "tokenizer_config.json"
        self.config = read_json(path, optional=True)
        self.special_tokens = _special_tokens(self.config, read_json(folder / "special_tokens_map.json", optional=True))
        """The special tokens that have a name (`bos_token`, `eos_token` ...), which chat templates may use."""
        try:
            _add_tokens(self._backend, self.config, self.special_tokens)
        except Exception as error:  # the same
            raise PackageError(f"{path} names tokens that cannot be added ({first_line(error)})") from error

    @cached_property
    def vocab_size(self) -> int:
        """Tokens it knows, added ones included; the library counts these anew each time."""
        return self._backend.get_vocab_size()

    def to_json(self) -> str:
        """Return it as the text of a `tokenizer.json`, tokens of the config included."""
        return self._backend.to_str()

    @cached_property
    def longest_token(self) -> int:
        """Characters that one token stands for at most; those of a byte-level vocabulary are bytes."""
        return max((len(token) for token in self._backend.get_vocab()), default=1)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: the text; special tokens written out in it (`<|end|>`) are those tokens, as with Hugging Face.
            special: whether to add what the tokenizer puts around a text, such as a beginning-of-text token. A
                rendered chat has it already.

        Raises:
            UsageError: it holds half a character (a lone surrogate).

        """
        try:
            return self._backend.encode(text, add_special_tokens=special).ids
        except TypeError as error:  # of a str with half a character in it: bytes that are no UTF-8 come so too
            at = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
            if at is None:
                raise
            raise UsageError(
                f"the text is not valid Unicode (U+{ord(text[at]):04X} at character {at}); fix it"
            ) from error

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return the text of token ids, as a rule without its special tokens."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_text(self, token: int) -> str:
        """Return one token as text, a special one as it is written; bytes of a character show as U+FFFD."""
        return self.decode([token], skip_special=False)

    def stream(self) -> "StreamDecoder":
        """Return a decoder for tokens that come one at a time."""
        return StreamDecoder(self)


class StreamDecoder:
    """Turns tokens into text as they come, so that all pieces together are the text of all tokens.

    A piece ends where a character does. Each token is decoded together with those of the piece before it, since what
    a token stands for can depend on its neighbour (SentencePiece drops the space of a text's first word).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # tokens of `_ids` whose text is out already

    def push(self, token: int) -> str:
        """Take the next token and return the text that it completes."""
        self._ids.append(token)
        return self._next(final=False)

    def flush(self) -> str:
        """Return what is left at the end: the bytes of an unfinished character, as U+FFFD."""
        return self._next(final=True)

    def _next(self, *, final: bool) -> str:
        text = self._tokenizer.decode(self._ids)
        before = self._tokenizer.decode(self._ids[: self._shown])
        piece = text[len(before) :]
        if not piece or (text.endswith(_INCOMPLETE) and not final):
            return ""
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return piece


def _special_tokens(config: Mapping[str, Any], legacy: Mapping[str, Any]) -> dict[str, str]:
    stated = {name: _content(config.get(name, legacy.get(name))) for name in _NAMED}
    return {name: token for name, token in stated.items() if token is not None}


def _content(stated: Any) -> str | None:
    token = stated.get("content") if isinstance(stated, dict) else stated
    return token if isinstance(token, str) else None


def _extra_tokens(config: Mapping[str, Any]) -> list[str]:
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    tokens = listed.values() if isinstance(listed, dict) else listed
    return [token for token in map(_content, tokens) if token is not None]


def _add_tokens(backend: Any, config: Mapping[str, Any], named: Mapping[str, str]) -> None:
    # As transformers does: the config's list of added tokens wins over tokenizer.json, and special ones are added.
    from tokenizers import AddedToken

    known = {(index, *_flags(token)) for index, token in backend.get_added_tokens_decoder().items()}
    wanted: list[Any] = []
    listed = config.get("added_tokens_decoder") or {}
    for index, entry in sorted((int(key), value) for key, value in listed.items()):
        token = AddedToken(entry["content"], **{flag: bool(entry.get(flag, False)) for flag in _TOKEN_FLAGS})
        if (index, *_flags(token)) not in known:
            wanted.append(token)
    present = {entry[1] for entry in known} | {token.content for token in wanted}
    special = dict.fromkeys([*named.values(), *_extra_tokens(config)])
    wanted += [AddedToken(text, special=True) for text in special if text not in present]
    if wanted:
        backend.add_tokens(wanted)


def _flags(token: Any) -> tuple[Any, ...]:
    return (token.content, *(getattr(token, flag) for flag in _TOKEN_FLAGS))
