"""Runs in Windows: the command line, the server, paths and encodings.    python command_line.py RESULTS FOLDER CASE...

FOLDER has `<case>-<target>` packages for the CPU, beside each `<case>-<target>.npy` with Linux's logits.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import Report, Skipped

PHI3_ONNX = Path(sys.executable).parent / "Scripts" / "phi3-onnx.exe"
PROMPT = [11, 402, 33, 204, 75, 306, 17, 118, 289, 40, 161, 92, 450]
QUESTION = "What is the capital of France?"
TARGETS = ("cpu-fp32", "cpu-int4-rtn")
LONGEST = 400
"""Seconds that a command may take: it takes five, but not on a machine that does much else."""


def phi3_onnx(
    *arguments: str | Path, stdin: bytes = b"", expect: int = 0, **environment: Any
) -> "subprocess.CompletedProcess[bytes]":
    """Run the command line as it is installed, and check its exit code."""
    done = subprocess.run(
        [str(PHI3_ONNX), *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=LONGEST,
        env={**os.environ, **environment},
        check=False,
    )
    said = done.stderr.decode("utf-8", "replace").strip()[-400:]
    assert done.returncode == expect, f"exit code {done.returncode}, not {expect}: {said}"
    assert b"Traceback" not in done.stderr, said
    return done


def answer(package: str | Path, *arguments: str, **environment: Any) -> dict[str, Any]:
    """Return what `generate --json` prints for one question."""
    options = ("-p", QUESTION, "-n", "8", "--temperature", "0", "--provider", "cpu", "--json")
    return json.loads(phi3_onnx("generate", package, *options, *arguments, **environment).stdout.decode("utf-8"))


def same_logits(package: Path) -> str:
    """Compare the logits with Linux's bit for bit."""
    from phi3_onnx.runtime.engines.session import LogitsSession

    opened = LogitsSession(package, threads=1)
    found = np.concatenate([part for _, part in opened.logits(np.array(PROMPT))])
    wanted = np.load(package.with_name(package.name + ".npy"))
    different = int((found.view(np.uint32) != wanted.view(np.uint32)).sum())
    assert not different, f"{different} of {found.size} logits differ, by up to {np.abs(found - wanted).max():.3g}"
    return f"{found.size} logits equal"


def listings() -> str:
    """Run what only prints."""
    version = phi3_onnx("--version").stdout.decode().strip()
    assert b"dml-int4-awq" in phi3_onnx("targets").stdout
    report = json.loads(phi3_onnx("doctor", "--json").stdout)
    assert report
    return version


def refusal(folder: Path) -> str:
    """Show one line and no traceback for a package that is not there."""
    line = phi3_onnx("generate", folder / "nothing", "-p", "hi", expect=1).stderr.decode().strip()
    assert len(line.splitlines()) == 1, line
    return line[:200]


def generate(package: Path) -> str:
    """Answer twice the same."""
    first, second = answer(package), answer(package)
    assert first["text"] == second["text"], f"{first['text']!r}, {second['text']!r}"
    return f"{first['text']!r}"


def chat(package: Path) -> str:
    """Say two lines through a pipe, with Windows' line ends."""
    options = ("-n", "6", "--temperature", "0", "--provider", "cpu")
    done = phi3_onnx("chat", package, *options, stdin=b"Hello\r\nAnd now?\r\n")
    assert done.stdout.strip(), "no answer on stdout"
    return f"{len(done.stdout)} bytes of answers"


def one_line(package: Path) -> str:
    """Take the prompt from stdin; the answer alone is on stdout."""
    wanted = answer(package)["text"]
    options = ("-p", "-", "-n", "8", "--temperature", "0", "--provider", "cpu")
    found = phi3_onnx("generate", package, *options, stdin=QUESTION.encode()).stdout.decode("utf-8")
    assert found.strip() == wanted.strip(), f"{found!r}, with --json {wanted!r}"
    return "the same answer"


def path_check(package: Path, place: Path) -> Callable[[], str]:
    """Return a check that a package answers from another place."""

    def check() -> str:
        wanted = answer(package)["text"]
        target = place / "package"
        shutil.copytree(package, target)
        try:
            found = answer(target)["text"]
        except AssertionError as error:
            if "weakly_canonical" in str(error):
                raise Skipped("ONNX Runtime loads no path of more than 260 characters here") from error
            raise
        finally:
            shutil.rmtree(place)
        assert found == wanted, f"{found!r}, not {wanted!r}"
        return f"{len(str(target))} characters"

    return check


def utf8(package: Path) -> str:
    """Ask in characters beyond ASCII, in UTF-8."""
    options = ("-p", "-", "-n", "8", "--temperature", "0", "--provider", "cpu", "--json")
    question = "Où est Zürich? 日本語 😀"
    done = phi3_onnx("generate", package, *options, stdin=question.encode("utf-8"), PYTHONUTF8="1")
    found = json.loads(done.stdout.decode("utf-8"))
    assert isinstance(found["text"], str)
    return f"{found['usage'] if 'usage' in found else len(found['text'])}"


def cp1252(package: Path) -> str:
    """Write to a pipe of Western Europe's code page, which lacks most characters: no traceback, exit code 0."""
    options = ("-p", "Où est Zürich? 日本語", "-n", "24", "--temperature", "0", "--provider", "cpu")
    done = phi3_onnx("generate", package, *options, PYTHONUTF8="0", PYTHONIOENCODING="cp1252")
    return f"{len(done.stdout)} bytes"


def refuses_cp1252(package: Path) -> str:
    """Refuse a prompt that is not UTF-8 in a line."""
    done = phi3_onnx("generate", package, "-p", "-", stdin="Où est Zürich?".encode("cp1252"), expect=2)
    line = done.stderr.decode("utf-8").strip()
    assert "UTF-8" in line and len(line.splitlines()) == 1, line
    return line[:120]


class Server:
    """`phi3-onnx serve` in a console group of its own, so that it can be sent Ctrl-Break."""

    def __init__(self, package: Path) -> None:
        """Start it, and wait until it says where it listens."""
        command = [str(PHI3_ONNX), "serve", str(package), "--port", "0", "--provider", "cpu", "--model-name", "tried"]
        flags: Any = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", **flags)
        lines: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            lines.append(line)
            if found := re.search(r"ready at (http://\S+)", line):
                self.address = found[1]
                return
        raise AssertionError("".join(lines)[-400:])

    def ask(self, **options: Any) -> bytes:
        """Post a chat request."""
        body = {
            "model": "tried",
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 8,
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"{self.address}/v1/chat/completions",
            json.dumps(body | options).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=LONGEST) as response:
            return response.read()

    def requests(self) -> str:
        """Compare one answer with the same as a stream."""
        whole = json.loads(self.ask())["choices"][0]["message"]["content"]
        lines = [line[6:] for line in self.ask(stream=True).decode("utf-8").splitlines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]", lines[-1]
        deltas = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1]]
        assert "".join(deltas) == whole, f"stream {''.join(deltas)!r}, whole {whole!r}"
        with urllib.request.urlopen(f"{self.address}/health", timeout=LONGEST) as response:
            assert json.load(response)["status"] == "ok"
        return f"{whole!r} in {len(lines)} events"

    def refuses(self) -> str:
        """Refuse a request that is malformed with a message."""
        try:
            self.ask(max_tokens="many")
        except urllib.error.HTTPError as error:
            code, message = error.code, json.loads(error.read())["error"]["message"]
        else:
            raise AssertionError("it answered")
        assert code == 400, code
        return message[:120]

    def stops(self) -> str:
        """End by Ctrl-Break, as in a console, with exit code 0."""
        start = time.perf_counter()
        try:
            self.process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
            code = self.process.wait(30)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Skipped(f"Wine passes no Ctrl-Break on where there is no console: {error}") from error
        assert code == 0, f"exit code {code}"
        return f"exit code 0 after {time.perf_counter() - start:.1f} s"

    def close(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def main() -> None:
    """Check everything."""
    results, name, *cases = sys.argv[1:]
    folder = Path(name).absolute()
    report = Report(results, "command line")
    package = folder / f"cut-{TARGETS[1]}"
    for case in cases:
        for target in TARGETS:
            report.check("logits are Linux's", f"{case} {target}", lambda: same_logits(folder / f"{case}-{target}"))  # noqa: B023
    report.check("version, targets, doctor", "", listings)
    report.check("refusal", "", lambda: refusal(folder))
    report.check("generate", "", lambda: generate(package))
    report.check("generate", "prompt by stdin", lambda: one_line(package))
    report.check("chat", "piped", lambda: chat(package))
    report.check("encodings", "UTF-8", lambda: utf8(package))
    report.check("encodings", "cp1252 pipe", lambda: cp1252(package))
    report.check("encodings", "cp1252 prompt", lambda: refuses_cp1252(package))
    places = {
        "spaces": folder / "a folder with spaces",
        "non-ASCII": folder / "größer 日本",
        "long": folder.joinpath(*["a-long-name-of-a-folder-" + "x" * 40] * 3),
        "beyond 260": folder.joinpath(*["a-long-name-of-a-folder-" + "x" * 40] * 4),
        "backslash and ..": Path(f"{folder}\\sub\\..\\back"),
    }
    for case, place in places.items():
        report.check("path", case, path_check(package, place))
    serve(report, package)


def serve(report: Report, package: Path) -> None:
    """Check the server, and that it ends."""
    started: list[Server] = []

    def start() -> str:
        started.append(Server(package))
        return started[0].address

    report.check("serve", "starts", start)
    if not started:
        return
    try:
        report.check("serve", "one answer and a stream", started[0].requests)
        report.check("serve", "refusal", started[0].refuses)
        report.check("serve", "Ctrl-Break", started[0].stops)
    finally:
        started[0].close()


if __name__ == "__main__":
    main()
