"""lm_eval's `local-completions`: the log likelihoods that it finds are those that the server states token by token."""

# Run in an environment of its own, whose packages are not those of the project.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalSubscript=false, reportOptionalIterable=false, reportOptionalMemberAccess=false, reportIndexIssue=false

import json
import math
import os
import urllib.request

from checks import MODEL, URL, check
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

PAIRS = [("The capital of France is", " Paris."), ("Two and two make", " four, and three and three make six.")]


@check("completions", "log likelihoods are the sums of the server's log probabilities")
def likelihoods() -> None:
    lm = LocalCompletionsAPI(
        model=MODEL,
        base_url=f"{URL}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=os.environ["PHI3_ONNX_PACKAGE"],
        num_concurrent=1,
    )
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(PAIRS)]
    for (context, continuation), (found, _) in zip(PAIRS, lm.loglikelihood(requests), strict=True):
        body = {"prompt": context + continuation, "echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0}
        request = urllib.request.Request(
            f"{URL}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            told = json.load(reply)["choices"][0]["logprobs"]
        ends = len(context + continuation)
        expected = sum(
            value
            for value, start in zip(told["token_logprobs"], told["text_offset"], strict=True)
            if len(context) <= start < ends
        )
        assert math.isclose(found, expected, abs_tol=1e-4), (found, expected)


@check("completions", "generates until a stop text")
def generates() -> None:
    lm = LocalCompletionsAPI(
        model=MODEL,
        base_url=f"{URL}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=os.environ["PHI3_ONNX_PACKAGE"],
        num_concurrent=1,
    )
    options = {"until": ["\n"], "max_gen_toks": 16, "temperature": 0}
    [text] = lm.generate_until([Instance("generate_until", {}, ("The capital of France is", options), 0)])
    assert text and "\n" not in text
