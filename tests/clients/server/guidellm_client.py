"""GuideLLM, a load generator: no request fails, and its count of tokens is what it asked for."""

import json
import os

from checks import MODEL, RESULT, URL, check, command, home


@check("chat", "a load of requests is answered")
def load() -> None:
    report = RESULT.with_suffix(".load.json")
    data = json.dumps({"prompt_tokens": 32, "output_tokens": 16})
    command(
        home(),
        *("guidellm", "benchmark", "run", "--target", URL, "--model", MODEL, "--data", data),
        *("--processor", os.environ["PHI3_ONNX_PACKAGE"], "--profile", "concurrent", "--rate", "2"),
        *("--max-requests", "8", "--output-path", str(report)),
    )
    [benchmark] = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    print(benchmark["run_stats"])
