"""`phi3-onnx bench`."""

import json
from dataclasses import asdict

import click

from ..configs.sizes import size
from .provider_library import provider_library
from .screen import warn_of_clashing_wheels


@click.command()
@click.argument("packages", nargs=-1, required=True)
@click.option("--provider", default="auto", show_default=True, help="Where to run: auto, cpu, cuda, dml.")
@provider_library
@click.option("--threads", type=click.IntRange(1), help="Threads on the CPU.  [default: physical cores]")
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens to prefill.")
@click.option("--decode", type=click.IntRange(1), default=48, show_default=True, help="Tokens to run after them.")
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True, help="Repetitions; medians count.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each package.")
def command(
    packages: tuple[str, ...],
    provider: str,
    threads: int | None,
    prompt: int,
    decode: int,
    repeat: int,
    as_json: bool,
) -> None:
    """Measure how fast packages prefill and decode, and what memory they take.

    Each package runs in a process of its own, so that its peak memory is its own.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from ..configs import find_package
    from ..evaluate.bench import bench

    options = {
        "provider": provider,
        "threads": threads,
        "prompt_tokens": prompt,
        "decoded_tokens": decode,
        "repeat": repeat,
    }
    folders = [find_package(package) for package in packages]
    warn_of_clashing_wheels(provider)
    for folder in folders:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            done = process.submit(bench, folder, **options).result()
        speed = done.speed
        if as_json:
            loading = {"load_seconds": done.load_seconds, "peak_memory_bytes": done.peak_memory_bytes}
            click.echo(json.dumps({"package": done.package, **asdict(speed), **loading}))
            continue
        click.echo(
            f"{done.package}: prefill {speed.prefill_tokens_per_second:.0f} tokens/s over {prompt}, "
            f"decode {speed.decode_tokens_per_second:.1f} tokens/s, loaded in {done.load_seconds:.2f} s, "
            f"peak memory {size(done.peak_memory_bytes)}, on {speed.provider} ({speed.engine})"
        )
