"""`phi3-onnx demo`: the main job from end to end on a small real model."""

import click

from ..configs.requirements import require_export
from ..configs.sizes import size
from .progress import progress_line
from .screen import notice

QUESTION = "What is the capital of France, and what is it known for?"


@click.command()
@click.option("-t", "--target", default="cpu-int4-rtn", show_default=True, help="What to make; see: phi3-onnx targets.")
@click.option("-p", "--prompt", default=QUESTION, show_default=True, help="What to ask.")
@click.option("-n", "--max-tokens", default=100, show_default=True, type=click.IntRange(1), help="Longest answer.")
def command(target: str, prompt: str, max_tokens: int) -> None:
    """Fetch a small real model (SmolLM2-135M-Instruct, Apache-2.0), export it, verify it and ask it something."""
    require_export()
    from ..configs.store import cache_folder
    from ..export import plan_export
    from ..export.sources.small_model import fetch_small_model
    from ..runtime import load
    from .export import run_plan

    notice("1. The model")
    with progress_line() as progress:
        checkpoint = fetch_small_model(cache_folder(), notify=notice, progress=progress)
    notice(f"   {checkpoint}")

    notice(f"2. Export to {target}")
    plan = plan_export(checkpoint, target, force=True)
    notice(f"   {size(plan.package_bytes)} to {plan.output}")
    package = run_plan(plan, verify=True, heading="3. Verify: the package against the float32 PyTorch model")

    notice(f"4. Ask it: {prompt}")
    with load(package) as model:
        response = None
        for chunk in model.stream(prompt, max_tokens=max_tokens):
            click.echo(chunk.text, nl=False)
            response = chunk.response or response
        click.echo()
        assert response is not None
        notice(
            f"   {response.prompt_tokens} prompt tokens at {response.prefill_tokens_per_second:.0f} tokens/s, "
            f"{response.completion_tokens} answer tokens at {response.decode_tokens_per_second:.0f} tokens/s, "
            f"on {model.provider}"
        )
    notice(f"Continue with: phi3-onnx chat {plan.checkpoint.model}/{plan.target.name}")
