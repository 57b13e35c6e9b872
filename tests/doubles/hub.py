"""A stand-in for the hub on localhost, which speaks as much of its protocol as its library uses."""

import base64
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Holds repositories as files by path; what is committed to one is there for the next request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Files] = {}
        self.fetched: list[tuple[str, str | None]] = []
        self.tokens: set[str | None] = set()
        self.cut_after: int | None = None
        """Bytes of the next data file after which the connection breaks, once."""


def commit_of(files: Files) -> str:
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path).partition("?")[0].strip("/").split("/")
        self.server.tokens.add(self.headers.get("authorization"))
        name = "/".join(path[2:4] if path[0] == "api" else path[:2])
        files = self.server.repositories.get(name)
        if files is None:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif path[0] != "api":
            self.send_file(files, "/".join(path[4:]))
        elif path[4:5] == ["tree"]:
            tree = [{"type": "file", "path": p, "size": len(c), "oid": etag(c)} for p, c in sorted(files.items())]
            self.json(tree)
        elif path[5:] in ([], ["main"], [commit_of(files)]):
            siblings = [{"rfilename": path} for path in sorted(files)]
            self.json({"id": name, "sha": commit_of(files), "siblings": siblings})
        else:
            self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

    def send_file(self, files: Files, path: str) -> None:
        if path not in files:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content, asked = files[path], self.headers.get("range")
        headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": commit_of(files), "Accept-Ranges": "bytes"}
        status = 200
        if asked and self.command == "GET":
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        if self.command == "GET":
            self.server.fetched.append((path, asked))
        cut, self.server.cut_after = self.server.cut_after, self.server.cut_after
        if cut is not None and self.command == "GET" and path.endswith(".data"):
            self.server.cut_after = None
            self.reply(status, content[:cut], headers, length=len(content))
            self.close_connection = True
        else:
            self.reply(status, content, headers)

    def do_POST(self) -> None:
        path = unquote(self.path).partition("?")[0].strip("/").split("/")
        length = self.headers.get("content-length")
        body = self.rfile.read(int(length)) if length else b"".join(self.chunks())
        self.server.tokens.add(self.headers.get("authorization"))
        if path == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization')}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self.json({"url": f"http://127.0.0.1/{name}", "name": name})
        elif path[-1] == "validate-yaml":
            self.json({"warnings": [], "errors": []})
        elif path[4:5] == ["preupload"]:
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.json({"files": modes})
        elif path[4:5] == ["commit"]:
            self.commit("/".join(path[2:4]), [json.loads(line) for line in body.splitlines()])
        else:
            self.reply(404, b"{}")

    def commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.repositories[name]
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = commit_of(files)
        self.json({"commitUrl": f"http://127.0.0.1/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def json(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode())

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
