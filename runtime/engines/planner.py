"""How much of each draft a step runs, by what steps of this graph cost."""

from collections.abc import Mapping
from typing import TypeVar

from ..decoding.speculation import OFF, Draft, Speculation, choose
from .costs import StepCosts
from .packed import PackedGraph

_Text = TypeVar("_Text")


class Planner:
    """Chooses drafts, and learns from the steps what they cost."""

    def __init__(self, graph: PackedGraph, speculation: Speculation) -> None:
        """Begin with what the graph's trial took.

        Args:
            graph: what runs the steps.
            speculation: how far texts run ahead. `AUTO` is `OFF` where that could change their tokens.

        """
        self.speculation = speculation if graph.padding or speculation.always else OFF
        self._graph = graph
        self._costs = StepCosts(graph.trial_seconds)

    def note(self, tokens: int, seconds: float) -> None:
        """Learn from a step without pieces of prompts."""
        self._costs.note(self._graph.filled(tokens), seconds)

    def plan(self, drafts: Mapping[_Text, Draft], texts: int) -> dict[_Text, Draft]:
        """Return how much of each draft to run.

        Args:
            drafts: of the texts that have one.
            texts: how many take the step, with a draft or without.

        """
        seconds: dict[int, float] = {}

        def cost(tokens: int) -> float:
            filled = self._graph.filled(tokens)
            if filled not in seconds:
                seconds[filled] = self._costs.seconds(filled)
            return seconds[filled]

        return choose(drafts, texts, cost, always=self.speculation.always) if drafts else {}
