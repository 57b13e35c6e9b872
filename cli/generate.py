"""`phi3-onnx generate`."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import Phi3OnnxError, UsageError
from .answering import Loading, answering_options, cancel_on_interrupt, prefill_bar, show, summary
from .json_output import echo_json
from .prompts import Request, prefilled, read_file, read_jsonl, read_prompts, read_variables
from .screen import notice

if TYPE_CHECKING:
    from ..runtime import Guidance, Model, Response
    from ..runtime.batch import BatchPrompt
    from ..runtime.decoding.kvcache import KvCache

_BATCH = 8
_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.command()
@click.argument("package", required=False)
@click.option("-p", "--prompt", "prompts", multiple=True, metavar="TEXT", help="Prompt; - is stdin. May be repeated.")
@click.option("-f", "--file", "files", multiple=True, type=_FILE, help="Read a prompt from a file. May be repeated.")
@click.option("--jsonl", type=_FILE, help="Read requests from a file of JSON lines, answer in JSON lines.")
@click.option(
    "--batch",
    type=click.IntRange(1),
    help=f"With --jsonl: requests answered side by side; 1 is one after another.  [default: {_BATCH}]",
)
@answering_options
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--prefill", metavar="TEXT", help="How the answer begins; what is printed comes after it.")
@click.option(
    "--template-variable",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="A further name that the chat template reads; VALUE is JSON or text. May be repeated.",
)
@click.option("--json-schema", type=_FILE, help="The answer must be JSON of this schema.")
@click.option("--regex", metavar="PATTERN", help="The answer must match this regular expression.")
@click.option("--grammar", type=_FILE, help="The answer must follow this grammar (GBNF, or llguidance's Lark).")
@click.option("--choice", multiple=True, metavar="TEXT", help="The answer must be one of these texts; repeat it.")
@click.option("--logprobs", type=click.IntRange(0, 20), help="With --json: log probabilities, and of N top tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each prompt.")
def command(
    package: str | None,
    prompts: tuple[str, ...],
    files: tuple[Path, ...],
    jsonl: Path | None,
    batch: int | None,
    system: str | None,
    raw: bool,
    prefill: str | None,
    variables: tuple[str, ...],
    json_schema: Path | None,
    regex: str | None,
    grammar: Path | None,
    choice: tuple[str, ...],
    logprobs: int | None,
    as_json: bool,
    loading: Loading,
    options: dict[str, Any],
) -> None:
    """Answer a prompt, or several, each on its own.

    PACKAGE is a folder or a name in the store; without it the newest package is taken. The answer goes to stdout,
    everything else to stderr. Each line of a --jsonl file holds a "prompt" or "messages", and may hold "id", "system",
    "raw", "template_variables", "response_format" (its form, as in OpenAI's protocol) and the flags' values
    ("max_tokens", "temperature" ...).
    """
    if logprobs is not None and not (as_json or jsonl):
        raise UsageError("--logprobs needs --json, or --jsonl")
    guidance = _guidance(json_schema, regex, grammar, choice)
    if logprobs is not None:
        options["logprobs"] = logprobs
    if guidance:
        options["guidance"] = guidance
    if jsonl and (prompts or files or prefill or variables):
        raise UsageError("--jsonl holds the prompts: leave out --prompt, --file, --prefill and --template-variable")
    if raw and (prefill or variables):
        raise UsageError("--prefill and --template-variable need the chat template: leave out --raw")
    if batch is not None and not jsonl:
        raise UsageError("--batch needs --jsonl")
    if jsonl:
        requests = read_jsonl(jsonl, system, raw, options)
        rows = min(batch or _BATCH, len(requests))
        if rows > 1 and loading.engine == "genai":
            notice("requests are answered one at a time: engine genai was asked for")
            rows = 1
        with loading.load(package, to_batch=rows > 1) as model, cancel_on_interrupt() as cancel:
            failed = _answer_lines(model, requests, rows, cancel)
            _leave(cancel, failed)
        return
    named = read_variables(variables)
    requests = [
        Request(prefilled(text, prefill) if prefill else text, system, raw, options, named)
        for text in read_prompts(prompts, files)
    ]
    with loading.load(package) as model, cancel_on_interrupt() as cancel:
        _answer_prompts(model, requests, cancel, as_json)
        _leave(cancel, failed=0)


def _leave(cancel: threading.Event, failed: int) -> None:
    if cancel.is_set():
        raise click.exceptions.Exit(130)
    if failed:
        raise click.exceptions.Exit(1)


def _answer_prompts(model: "Model", requests: Sequence[Request], cancel: threading.Event, as_json: bool) -> None:
    """Answer each request and print the answer as it comes, or as JSON."""
    cache = model.new_cache()
    try:
        for number, request in enumerate(requests):
            if cancel.is_set():
                break
            if number and not as_json:
                click.echo()
            _answer(model, cache, request, cancel, as_json)
    finally:
        cache.close()


def _answer(model: "Model", cache: "KvCache", request: Request, cancel: threading.Event, as_json: bool) -> None:
    from ..runtime.decoding.response import last_response

    # One cache for all prompts: what they share from the start, such as a system message, is run once.
    chunks = model.run(
        model.encode(request.prompt, raw=request.raw, system=request.system, template_variables=request.variables),
        model.options(**request.options),
        cache=cache,
        cancel=cancel,
        on_prefill=prefill_bar(),
    )
    if as_json:
        response = last_response(chunks)
        echo_json(_as_json(model, request, response))
    else:
        response = show(chunks)
    notice(summary(response))


def _answer_lines(model: "Model", requests: Sequence[Request], rows: int, cancel: threading.Event) -> int:
    """Answer requests `rows` at a time, print a line of JSON for each in turn, and return how many failed."""
    from ..runtime.batch import answer_all

    jobs = [_job(model, request) for request in requests]
    answers = answer_all(
        model,
        [job for job in jobs if not isinstance(job, Phi3OnnxError)],
        batch=rows,
        cancel=cancel,
        on_prefill=prefill_bar(),
        notify=notice,
    )
    failed = 0
    for request, job in zip(requests, jobs, strict=True):
        result = job if isinstance(job, Phi3OnnxError) else next(answers, None)
        if result is None:  # cancelled before it was begun
            break
        if isinstance(result, Phi3OnnxError):
            failed += 1
            echo_json({"id": request.id, "error": str(result)})
        else:
            echo_json(_as_json(model, request, result))
            notice(summary(result))
    return failed


def _job(model: "Model", request: Request) -> "BatchPrompt | Phi3OnnxError":
    from ..runtime.batch import BatchPrompt

    try:
        tokens = model.encode(
            request.prompt, raw=request.raw, system=request.system, template_variables=request.variables
        )
        return BatchPrompt(tokens, model.options(**request.options))
    except Phi3OnnxError as error:
        return error


def _as_json(model: "Model", request: Request, response: "Response") -> dict[str, Any]:
    table: dict[str, Any] = {} if request.id is None else {"id": request.id}
    table |= {
        "text": response.text,
        "finish_reason": response.finish_reason,
        "prompt_tokens": response.prompt_tokens,
        "cached_tokens": response.cached_tokens,
        "completion_tokens": response.completion_tokens,
        "drafted_tokens": response.drafted_tokens,
        "accepted_tokens": response.accepted_tokens,
        "prefill_seconds": round(response.prefill_seconds, 6),
        "decode_seconds": round(response.decode_seconds, 6),
        "prefill_tokens_per_second": round(response.prefill_tokens_per_second, 2),
        "decode_tokens_per_second": round(response.decode_tokens_per_second, 2),
        "model": model.package.name,
        "provider": model.provider,
    }
    placement = model.choice.placement
    if placement and placement.elsewhere:
        table["nodes_elsewhere"] = placement.elsewhere
    if response.logprobs is not None:
        text = model.tokenizer.token_text
        table["logprobs"] = [
            {
                "token_id": entry.token_id,
                "token": text(entry.token_id),
                "logprob": round(entry.logprob, 6),
                "top": [
                    {"token_id": token, "token": text(token), "logprob": round(value, 6)} for token, value in entry.top
                ],
            }
            for entry in response.logprobs
        ]
    return table


def _guidance(
    json_schema: Path | None, regex: str | None, grammar: Path | None, choice: tuple[str, ...]
) -> "Guidance | None":
    if sum(value is not None for value in (json_schema, regex, grammar, choice or None)) > 1:
        raise UsageError("take one of --json-schema, --regex, --grammar and --choice")
    from ..runtime import Guidance

    if json_schema:
        return Guidance("json_schema", read_file(json_schema))
    if grammar:
        return Guidance.grammar(read_file(grammar))
    if choice:
        return Guidance.one_of(choice)
    return Guidance("regex", regex) if regex is not None else None
