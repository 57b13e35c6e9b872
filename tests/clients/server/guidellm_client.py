"""GuideLLM, a load generator: no request fails."""

import json
import os

from checks import MODEL, RESULT, URL, check, command, home


@check("chat", "a load of requests is answered")
def load() -> None:
    report = RESULT.with_suffix(".load.json")
    command(
        home(),
        *("guidellm", "run", "--backend", f"kind=openai_http,target={URL},model={MODEL}"),
        *("--tokenizer", f"kind=huggingface_auto,model={os.environ['PHI3_ONNX_PACKAGE']}"),
        *("--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16", "--profile", "kind=concurrent,streams=2"),
        *("--constraint", "kind=max_requests,count=8", "--output", f"kind=json,path={report}", "--disable-console"),
    )
    [benchmark] = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (8, 0), totals
