"""How each protocol lists a model, whether one is served or many."""

from typing import Any

from .facts import Facts


def openai_card(name: str, created: float, context_length: int | None, **more: Any) -> dict[str, Any]:
    """Return a model as `/v1/models` lists it.

    Args:
        name: of the model.
        created: seconds since 1970.
        context_length: in tokens; None where it is not known before the model is loaded.
        more: further fields.

    """
    card = {"id": name, "object": "model", "created": int(created), "owned_by": "phi3-onnx", **more}
    if context_length is not None:
        # Clients of vLLM look for the second name.
        card |= {"context_length": context_length, "max_model_len": context_length}
    return card


def ollama_card(name: str, facts: Facts) -> dict[str, Any]:
    """Return a model as Ollama's `/api/tags` and `/api/ps` list it."""
    return {
        "name": name,
        "model": name,
        "modified_at": facts.modified,
        "size": facts.size,
        "digest": facts.digest,
        "details": ollama_details(facts),
    }


def ollama_details(facts: Facts) -> dict[str, Any]:
    """Return the field `details` of a model, as Ollama's protocol has it."""
    millions = facts.num_parameters / 1e6
    size = f"{millions / 1000:.1f}B" if millions >= 1000 else f"{millions:.1f}M"
    return {
        "parent_model": "",
        "format": "onnx",
        "family": facts.family,
        "families": [facts.family] if facts.family else [],
        "parameter_size": size if facts.num_parameters else "",
        "quantization_level": facts.quantization,
    }
