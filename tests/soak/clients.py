"""Clients of a server under load: polite ones, slow ones, rude ones, and those that ask for the impossible.

Each is a coroutine that makes one visit and returns what became of it, or raises `BrokenPromiseError` where the server
did not do what a server must: answer an accepted request to its end, or say with a status why not.
"""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

BUSY = (429, 503)
"""Statuses that say that there is no room now."""
_SECONDS = 240.0
_JSON = {"Content-Type": "application/json"}


class BrokenPromiseError(AssertionError):
    """The server left a request without its answer, or gave one that it must not give."""


@dataclass
class Server:
    """Where the server is, and how it is asked."""

    host: str
    port: int
    http: httpx.AsyncClient
    random: random.Random
    context: int
    """Tokens of the model's context."""

    def chat(self, text: str, tokens: int = 24, **options: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, **options}

    def words(self, count: int) -> str:
        return " ".join(
            self.random.choice(("sun", "rain", "dog", "fox", "model", "weather", "37")) for _ in range(count)
        )


Visit = Callable[[Server], Awaitable[str]]


def require(holds: bool, what: str) -> None:
    if not holds:
        raise BrokenPromiseError(what)


async def post(server: Server, path: str, body: Any, *statuses: int) -> httpx.Response:
    """Post a body, and require an answer with one of these statuses, or one that says that there is no room."""
    reply = await server.http.post(path, json=body)
    require(reply.status_code in (*statuses, *BUSY), f"{path}: status {reply.status_code}: {reply.text[:300]}")
    if reply.status_code >= 400:
        require("error" in reply.json(), f"{path}: {reply.status_code} without an error: {reply.text[:300]}")
    return reply


async def plain(server: Server) -> str:
    """Ask, and read the whole answer."""
    reply = await post(server, "/v1/chat/completions", server.chat(server.words(8)), 200)
    if reply.status_code in BUSY:
        return "busy"
    choice = reply.json()["choices"][0]
    require(choice["finish_reason"] in ("stop", "length"), f"finish_reason {choice['finish_reason']}")
    return "answered"


async def several(server: Server) -> str:
    """Ask for several answers with log probabilities and stops."""
    body = server.chat(server.words(5), 12, n=3, logprobs=True, top_logprobs=3, stop=["zz"], temperature=0.8)
    reply = await post(server, "/v1/chat/completions", body, 200)
    if reply.status_code in BUSY:
        return "busy"
    require(len(reply.json()["choices"]) == 3, "asked for 3 answers")
    return "answered"


async def guided(server: Server) -> str:
    """Ask for JSON of a schema."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = await post(server, "/v1/chat/completions", server.chat("a", 48, response_format=form), 200)
    if reply.status_code in BUSY:
        return "busy"
    choice = reply.json()["choices"][0]
    if choice["finish_reason"] == "stop":
        require("a" in json.loads(choice["message"]["content"]), "the answer is not of its schema")
    return "answered"


@contextlib.asynccontextmanager
async def _stream(server: Server, tokens: int) -> AsyncIterator[httpx.Response]:
    body = server.chat(server.words(6), tokens, stream=True)
    async with server.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        require(reply.status_code in (200, *BUSY), f"stream: status {reply.status_code}")
        yield reply


async def _read_stream(server: Server, tokens: int, pause: float = 0.0) -> str:
    last = ""
    async with _stream(server, tokens) as reply:
        if reply.status_code in BUSY:
            return "busy"
        async for line in reply.aiter_lines():
            last = line or last
            if pause:
                await asyncio.sleep(pause)
    require(last == "data: [DONE]", f"a stream ended with {last[:200]!r}")
    return "answered"


async def streamed(server: Server) -> str:
    """Read a stream to its end."""
    return await _read_stream(server, 40)


async def slow_reader(server: Server) -> str:
    """Read a stream a little at a time."""
    return await _read_stream(server, 40, 0.05)


async def hangs_up(server: Server) -> str:
    """Go away in the middle of a stream."""
    async with _stream(server, 2000) as reply:
        if reply.status_code in BUSY:
            return "busy"
        wanted = server.random.randrange(6)
        async for _ in reply.aiter_lines():
            wanted -= 1
            if wanted <= 0:
                break
    return "left"


async def hangs_up_early(server: Server) -> str:
    """Go away before the answer begins."""
    body = json.dumps(server.chat(server.words(300), 2000)).encode()
    reader, writer = await _connect(server)
    writer.write(_head("POST", "/v1/chat/completions", len(body)) + body)
    await writer.drain()
    await asyncio.sleep(server.random.random() * 0.3)
    del reader
    writer.transport.abort()
    return "left"


async def never_reads(server: Server) -> str:
    """Ask for a long stream, and read nothing for some seconds."""
    body = json.dumps(server.chat(server.words(6), 2000, stream=True, logprobs=True, top_logprobs=20)).encode()
    _, writer = await _connect(server)
    writer.write(_head("POST", "/v1/chat/completions", len(body)) + body)
    await writer.drain()
    await asyncio.sleep(3)
    writer.transport.abort()
    return "left"


async def slow_sender(server: Server) -> str:
    """Send a request a few bytes at a time; go away half-way, or read the answer."""
    body = json.dumps(server.chat(server.words(20), 8)).encode()
    whole = _head("POST", "/v1/chat/completions", len(body)) + body
    reader, writer = await _connect(server)
    stops = server.random.random() < 0.5
    try:
        for start in range(0, len(whole) // (2 if stops else 1), 12):
            writer.write(whole[start : start + 12])
            await writer.drain()
            await asyncio.sleep(0.03)
        if stops:
            return "left"
        return await _status(reader, (200, *BUSY))
    finally:
        writer.transport.abort()


async def silent_crowd(server: Server) -> str:
    """Open many connections, say nothing or half a request on each, and go away after some seconds."""
    crowd = await asyncio.gather(*(_connect(server) for _ in range(100)), return_exceptions=True)
    found = [one for one in crowd if not isinstance(one, BaseException)]
    require(len(found) == len(crowd), f"{len(crowd) - len(found)} of {len(crowd)} connections were refused")
    for _, writer in found[::2]:
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    await asyncio.sleep(3)
    for _, writer in found:
        writer.transport.abort()
    return "left"


async def garbage(server: Server) -> str:
    """Send bytes that are no HTTP, or half of it."""
    bad = (
        server.random.randbytes(server.random.randrange(1, 4000)),
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"b" * 100_000 + b"\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nhello\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n{",
        b"GET /health HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    )
    reader, writer = await _connect(server)
    with contextlib.suppress(ConnectionError):
        writer.write(server.random.choice(bad))
        await writer.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(4096), 2)
    writer.transport.abort()
    return "refused"


async def wrong(server: Server) -> str:
    """Send bodies that are wrong in all ways."""
    ask = server.chat("a", 4)
    bodies: tuple[Any, ...] = (
        [],
        "text",
        {**ask, "messages": "hello"},
        {**ask, "messages": [{"role": 7, "content": {"a": 1}}]},
        {**ask, "temperature": 1e308},
        {**ask, "max_tokens": -7},
        {**ask, "n": 10**9},
        {**ask, "top_logprobs": 10**6, "logprobs": True},
        {**ask, "logit_bias": {"1000000000": 5}},
        {**ask, "stop": ["x"] * 10_000},
        {**ask, "seed": "now"},
        {**ask, "tools": [{"type": "function"}]},
        {"messages": []},
        {"messages": [{"role": "user", "content": server.words(40_000)}], "max_tokens": 4},
    )
    reply = await post(server, "/v1/chat/completions", server.random.choice(bodies), 400, 413, 422)
    return "busy" if reply.status_code in BUSY else "refused"


async def deep(server: Server) -> str:
    """Send JSON that is deep, cut off, or no UTF-8."""
    bodies = (b"[" * 100_000, b'{"messages": [{"role": "user"', b"\xff\xfe{}", b'{"a":' * 50_000, b"9" * 20_000, b"")
    reply = await server.http.post("/v1/chat/completions", content=server.random.choice(bodies), headers=_JSON)
    require(reply.status_code in (400, 413, 422, *BUSY), f"status {reply.status_code}: {reply.text[:300]}")
    return "refused"


async def oversized(server: Server) -> str:
    """Send more than is allowed."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 65_536

    try:
        reply = await server.http.post("/v1/chat/completions", content=pieces(), headers=_JSON)
    except httpx.HTTPError:  # the server may close before it has all of it
        return "refused"
    require(reply.status_code == 413, f"6.5 MB got status {reply.status_code}")
    return "refused"


async def schema_from_hell(server: Server) -> str:
    """Ask for forms whose grammars would take all memory, or all time."""
    deep_schema: dict[str, Any] = {}
    for _ in range(200):
        deep_schema = {"type": "array", "items": deep_schema}
    schemas: tuple[Mapping[str, Any], ...] = (
        {"type": "array", "items": {"type": "string"}, "minItems": 1_000_000_000},
        {"type": "array", "items": {"type": "string"}, "minItems": 10_000_000},
        {"type": "string", "pattern": "(a{1,1000}){1,1000}"},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}},
        {"anyOf": [{"type": "object", "properties": {f"k{i}": {"const": i}}} for i in range(2000)]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        deep_schema,
        {"type": "string", "minLength": 10**9},
        {"type": "wrong"},
    )
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": server.random.choice(schemas)}}
    reply = await post(server, "/v1/chat/completions", server.chat("a", 4, response_format=form), 400)
    return "busy" if reply.status_code in BUSY else "refused"


async def too_long(server: Server) -> str:
    """Send prompts beyond the context, unread or tokenized."""
    count = server.random.choice((server.context * 2, server.context * 40))
    reply = await post(server, "/v1/completions", {"prompt": "a " * count, "max_tokens": 4}, 400, 413)
    return "busy" if reply.status_code in BUSY else "refused"


async def fills(server: Server) -> str:
    """Send a prompt and ask for an answer that fill a power of two of tokens, or the context, to the last one."""
    whole = server.random.choice((256, 512, server.context))
    answer = server.random.randrange(2, 40)
    prompt = [server.random.randrange(5, 400) for _ in range(min(whole, server.context) - answer)]
    body = {"prompt": prompt, "max_tokens": answer, "ignore_eos": True}
    reply = await post(server, "/v1/completions", body, 200)
    return "busy" if reply.status_code in BUSY else "answered"


async def long_prompt(server: Server) -> str:
    """Send a prompt that fills half of the context."""
    prompt = [server.random.randrange(5, 400) for _ in range(server.context // 2)]
    reply = await post(server, "/v1/completions", {"prompt": prompt, "max_tokens": 4}, 200)
    return "busy" if reply.status_code in BUSY else "answered"


async def looks_around(server: Server) -> str:
    """Ask for everything else."""
    path, *statuses = server.random.choice(
        (("/", 200), ("/health", 200), ("/metrics", 200), ("/v1/models", 200), ("/none", 404), ("/v1/embeddings", 405))
    )
    reply = await server.http.get(str(path))
    require(reply.status_code in (*statuses, 503), f"{path}: status {reply.status_code}")
    return "answered"


async def tokenizes(server: Server) -> str:
    """Tokenize and back."""
    text = server.words(50)
    reply = await post(server, "/tokenize", {"prompt": text}, 200)
    if reply.status_code in BUSY:
        return "busy"
    back = await post(server, "/detokenize", {"tokens": reply.json()["tokens"]}, 200)
    require(back.status_code in BUSY or back.json()["prompt"] == text, "detokenize gives another text")
    return "answered"


async def flood(server: Server) -> str:
    """Ask a hundred things at once: each gets an answer, or is told that there is no room."""
    body = server.chat(server.words(4), 8)
    replies = await asyncio.gather(*(post(server, "/v1/chat/completions", body, 200) for _ in range(100)))
    return f"{(sum(reply.status_code in BUSY for reply in replies) and 'some busy') or 'answered'}"


async def first_token(server: Server) -> float:
    """Return the seconds that a small request takes to its first token; NaN where there was no room."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    body = server.chat("What is the capital of France?", 4, stream=True)
    async with server.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code in BUSY:
            return float("nan")
        async for line in reply.aiter_lines():
            if '"content"' in line or line == "data: [DONE]":
                return loop.time() - begun
    raise BrokenPromiseError("a stream without a token")


async def _connect(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.wait_for(asyncio.open_connection(server.host, server.port), 30)


def _head(method: str, path: str, length: int) -> bytes:
    lines = (
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    )
    return "\r\n".join((*lines, "", "")).encode()


async def _status(reader: asyncio.StreamReader, allowed: tuple[int, ...]) -> str:
    line = await asyncio.wait_for(reader.readline(), _SECONDS)
    status = int(line.split()[1]) if line else 0
    require(status in allowed, f"status {status}")
    return "busy" if status in BUSY else "answered"


VISITS: Mapping[str, tuple[Visit, int]] = {
    visit.__name__: (visit, weight)
    for visit, weight in (
        (plain, 6),
        (several, 2),
        (guided, 3),
        (streamed, 6),
        (slow_reader, 3),
        (hangs_up, 5),
        (hangs_up_early, 4),
        (never_reads, 2),
        (slow_sender, 3),
        (silent_crowd, 1),
        (garbage, 3),
        (wrong, 3),
        (deep, 2),
        (oversized, 1),
        (schema_from_hell, 3),
        (too_long, 2),
        (long_prompt, 2),
        (fills, 4),
        (looks_around, 3),
        (tokenizes, 2),
        (flood, 1),
    )
}
"""Each kind of client by name, and how often it comes."""
