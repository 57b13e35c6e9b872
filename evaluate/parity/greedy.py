"""Greedy answers of a package, judged by one pass of the reference over each.

The reference reads prompt and answer at once and says for every position which token it ranks first there. As long as
those are the package's tokens, the answer is what the reference would have written itself, token by token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...configs.progress import Counter, Progress
from ...runtime.engines.session import LogitsSession
from .compare import Rows


@dataclass(frozen=True)
class Answer:
    """What a package wrote."""

    prompt: np.ndarray
    """Token ids, int64 [tokens]."""
    tokens: np.ndarray
    """The continuation, int64 [steps]."""

    @property
    def sequence(self) -> np.ndarray:
        """Prompt and continuation."""
        return np.concatenate([self.prompt, self.tokens])


@dataclass(frozen=True)
class Agreement:
    """How far greedy answers are the reference's own."""

    agreed: int
    """Tokens that the reference also ranks first, in the package's context."""
    total: int
    identical: int
    """Answers that agree from end to end."""
    answers: int
    first_difference: str | None
    """Where the first one is, and how far the reference's choice leads there."""

    @property
    def share(self) -> float:
        """Share of tokens that agree, 0 to 1."""
        return self.agreed / self.total if self.total else 1.0

    def __str__(self) -> str:
        text = f"{self.agreed} of {self.total} tokens, {self.identical} of {self.answers} answers identical"
        return f"{text}; first difference: {self.first_difference}" if self.first_difference else text


def judge(answers: Sequence[Answer], references: Sequence[Rows], text: Callable[[int], str]) -> Agreement:
    """Compare greedy answers with the reference.

    Args:
        answers: what the package wrote.
        references: for each answer, the reference's logits over its `sequence`.
        text: gives a token's text, for the report.

    """
    agreed = total = identical = 0
    first: str | None = None
    for number, (answer, rows) in enumerate(zip(answers, references, strict=True), start=1):
        # The logits at a position are about the token after it.
        logits = rows(len(answer.prompt) - 1, len(answer.sequence) - 1)
        best = logits.argmax(axis=1)
        same = best == answer.tokens
        agreed, total, identical = agreed + int(same.sum()), total + len(same), identical + bool(same.all())
        if first is None and not same.all():
            step = int(same.argmin())
            ours, theirs = int(answer.tokens[step]), int(best[step])
            margin = float(logits[step, theirs]) - float(logits[step, ours])
            first = (
                f"answer {number}, token {step + 1}: {text(ours)!a} for the reference's {text(theirs)!a}, "
                f"whose logit leads by {margin:.3g}"
            )
    return Agreement(agreed, total, identical, len(answers), first)


def answer_all(session: LogitsSession, prompts: Sequence[np.ndarray], steps: int, progress: Progress) -> list[Answer]:
    """Have a package continue prompts with its most likely tokens.

    Args:
        session: the package.
        prompts: token ids, int64 [tokens] each.
        steps: tokens of each answer.
        progress: called with each token.

    Raises:
        UsageError: a prompt and its answer are more than the model's context.
        PackageError: the graph fails.

    """
    counter = Counter(progress, "package: greedy answers", steps * len(prompts), "tokens")
    return [Answer(prompt, session.greedy(prompt, steps, notify=lambda _: counter.add(1))) for prompt in prompts]
