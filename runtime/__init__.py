"""Run a package on CUDA, DirectML or the CPU: load, generate, stream, chat. Needs neither torch nor transformers."""

from .chat import ChatSession
from .engine import Engine, Guidance, TokenSequence
from .model import Model, load
from .pipeline import pipeline
from .response import Chunk, Response
from .sampling import Sampling

__all__ = [
    "ChatSession",
    "Chunk",
    "Engine",
    "Guidance",
    "Model",
    "Response",
    "Sampling",
    "TokenSequence",
    "load",
    "pipeline",
]
