"""Run a package on CUDA, DirectML or the CPU: load, generate, stream, chat. Needs neither torch nor transformers."""

from .chat import ChatSession
from .decoding.engine import Engine, Guidance, TokenSequence
from .decoding.response import Chunk, Response
from .decoding.sampling import Sampling
from .model import Model, load
from .pipeline import pipeline

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
