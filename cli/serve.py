"""`phi3-onnx serve`."""

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..configs import UsageError
from ..configs.sizes import parse_size
from .answering import Loading, loading_options
from .screen import notice, quiet, warn_of_clashing_wheels

if TYPE_CHECKING:
    from ..runtime.server.logs import LogFormat


def _read_size(ctx: click.Context, param: click.Parameter, given: str | None) -> int | None:
    try:
        return None if given is None else parse_size(given)
    except UsageError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("package", required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all of them.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--api-key",
    metavar="KEY",
    show_envvar=True,
    help="Answer only requests that carry it, as bearer token or as x-api-key.  [default: all]",
)
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="Let pages of this origin read answers; may be repeated; * is all."
)
@click.option(
    "--allow-host", multiple=True, metavar="NAME", help="Answer under this name, too, behind a proxy on this machine."
)
@click.option("--model-name", metavar="NAME", help="What clients call the model.  [default: the package's name]")
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1), help="Answers to work on at a time.")
@click.option(
    "--queue", default=64, show_default=True, type=click.IntRange(0), help="Requests that may wait; more get 429."
)
@click.option(
    "--max-request-mb", default=4.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Largest request."
)
@click.option(
    "--tool-calls", default=8, show_default=True, type=click.IntRange(1, 128), help="Tool calls of one answer at most."
)
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse requests with unknown parameters or for another model.  [default: warn in a header]",
)
@click.option(
    "--cache-memory",
    callback=_read_size,
    metavar="SIZE",
    help="Memory for texts that ended, such as 2GB; those used last stay.  [default: a quarter of what is free]",
)
@click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep texts that ended in this folder, too, so that a server that starts again need not run them again.",
)
@click.option(
    "--cache-dir-size",
    callback=_read_size,
    default="4GB",
    show_default=True,
    metavar="SIZE",
    help="What that folder may hold at most, for all models together.",
)
@click.option(
    "--share-files",
    is_flag=True,
    help="Let clients fetch the package's files under /package/, such as a page that runs the model itself.",
)
@click.option(
    "--shutdown-seconds",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    help="How long answers may continue after SIGTERM or Ctrl-C; a second one ends them at once.",
)
@click.option(
    "--preload", multiple=True, metavar="NAME", help="Without PACKAGE: load this model at once; may be repeated."
)
@click.option(
    "--keep-alive",
    default=600.0,
    show_default=True,
    type=float,
    metavar="SECONDS",
    help="Without PACKAGE: how long a model stays loaded that nobody asks for; below 0 until its memory is wanted.",
)
@click.option(
    "--loaded", default=2, show_default=True, type=click.IntRange(1), help="Without PACKAGE: models loaded at a time."
)
@click.option(
    "--model-memory",
    type=click.FloatRange(0, min_open=True),
    metavar="GB",
    help="Without PACKAGE: memory of all loaded models.  [default: what is free]",
)
@click.option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(["text", "json"]),
    help="JSON: every notice, log line and request as an object of its own.",
)
@loading_options
def command(
    package: str | None,
    host: str,
    port: int,
    api_key: str | None,
    cors: tuple[str, ...],
    allow_host: tuple[str, ...],
    model_name: str | None,
    parallel: int,
    queue: int,
    max_request_mb: float,
    tool_calls: int,
    strict: bool,
    cache_memory: int | None,
    cache_dir: Path | None,
    cache_dir_size: int,
    share_files: bool,
    shutdown_seconds: float,
    preload: tuple[str, ...],
    keep_alive: float,
    loaded: int,
    model_memory: float | None,
    log_format: "LogFormat",
    loading: Loading,
) -> None:
    """Serve a package over HTTP: OpenAI's protocol at /v1, a page to chat at /, /health, and /metrics.

    PACKAGE is a folder or a name in the store. Without it, all packages of the store are offered: each is loaded when
    it is first asked for by its name or alias, and unloaded when nobody uses it or its memory is wanted. A model runs
    in a process of its own, which is started again should it die.
    """
    from ..configs.requirements import require_server

    require_server()
    from ..configs import find_package
    from ..runtime.providers.devices import free_memory
    from ..runtime.server.logs import log_in_json
    from ..runtime.server.messages import Ready
    from ..runtime.server.offers import offered
    from ..runtime.server.run import serve, serve_many
    from ..runtime.server.settings import Settings
    from ..runtime.server.worker import PackageLoader

    many = package is None and bool(preload or len(offered(loading.provider, lambda folder: lambda: folder)) > 1)
    if many and (model_name is not None or share_files):
        raise UsageError("--model-name and --share-files are for one package; name it (names: phi3-onnx alias)")
    folder = None if many else loading.find(package)
    settings = Settings(
        host=host,
        port=port,
        model_name=model_name,
        api_key=api_key,
        cors=cors,
        allowed_hosts=allow_host,
        parallel=parallel,
        queue=queue,
        max_request_bytes=int(max_request_mb * 2**20),
        tool_calls=tool_calls,
        strict=strict,
        shared_files=folder if share_files else None,
        keep_alive=keep_alive,
        most_loaded=loaded,
        model_bytes=None if model_memory is None else round(model_memory * 1e9),
        shutdown_seconds=shutdown_seconds,
    )
    say = notice
    if log_format == "json":
        log_in_json(debug=bool(click.get_current_context().find_root().params.get("debug")))
        say = logging.getLogger("phi3_onnx.serve").info

    def load(folder: Path) -> PackageLoader:
        return PackageLoader(
            str(folder),
            **asdict(loading),
            cache_memory=cache_memory,
            cache_folder=(cache_dir.absolute(), cache_dir_size) if cache_dir else None,
            notify=None if quiet() else say,
            log_format=log_format,
        )

    warn_of_clashing_wheels(loading.provider)
    if not settings.local and api_key is None:
        say(f"everyone who reaches {host} can use this server; --api-key keeps others out")

    def on_ready(info: Ready, url: str) -> None:
        say(f"{info.model} on {info.provider} ({info.choice})")
        if info.turns_because:
            say(f"answers take turns and may differ by rounding: {info.turns_because}")
        say(f"ready at {url} (OpenAI's protocol at {url}/v1); Ctrl-C ends it")

    if folder is None:
        draft = None if loading.draft is None else find_package(loading.draft)
        serve_many(
            lambda: offered(loading.provider, load, draft),
            settings,
            lambda url: say(f"ready at {url} (OpenAI's protocol at {url}/v1), for every package of the store"),
            preload=preload,
            free=partial(free_memory, _where(loading.provider), loading.device or 0),
            notify=say,
        )
        return
    serve(load(folder), settings, on_ready)


def _where(provider: str) -> str:
    from ..runtime.providers.names import canonical

    # What `auto` takes shows when a model is loaded, and its weights pass through this machine's memory anyway.
    wanted = canonical(provider)
    return "cpu" if wanted == "auto" else wanted
