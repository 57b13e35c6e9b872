"""The calibration text that comes with the project; sources and licences are in `data/README.md`."""

from importlib.resources import files


def own_texts() -> list[str]:
    """Return the shipped texts, in the order of their names."""
    folder = files(__package__ or "phi3_onnx.quantize") / "data"
    entries = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".txt")), key=lambda entry: entry.name)
    return [entry.read_text(encoding="utf-8") for entry in entries]
