"""Many texts in one engine: each takes the next step together with all others that wait for one.

A text joins at any step and leaves when it is done. Prompts run in pieces between the steps of answers, no more at a
time than a budget of seconds allows, so that no answer stands still for long. A new text takes the longest beginning
that any text in memory shares with it by copy. `PackedGraph` makes sure that none of this changes a single bit of what
a text gets.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence

import numpy as np

from ...configs import EngineError, UsageError
from ..decoding.ahead import Ahead
from ..decoding.kvcache import check_memory, common_length
from ..decoding.lookup import LookupDrafter
from ..decoding.speculation import AUTO, NO_DRAFT, Draft, Drafter, Speculation
from ..providers.hardware import available_memory
from .arena import Arena
from .layout import RowRun
from .packed import PackedGraph
from .piece_costs import PieceCosts, Work
from .pieces import PiecePlanner
from .planner import Planner
from .prefix_files import BLOCK, PrefixFiles
from .prefixes import Kept, PrefixStore

STEP_SECONDS = 0.1
"""How long answers that are under way may stand still for pieces of prompts; see `PiecePlanner.budget`."""
LONGEST_PIECE = 256
"""Tokens of prompts that a step has at most, where nothing else suits the machine."""
_LEAST_CAPACITY = 256
# A beginning that another text is about to run is worth waiting for from this many tokens on.
_WORTH_WAITING = 32


class LiveText:
    """The cache of one live text, as `Generation` uses it; `Together.open` makes it."""

    def __init__(
        self, owner: "Together", slot: int, prompt: Sequence[int], needed: int, drafter: Drafter | None = None
    ) -> None:
        self._owner = owner
        self._prompt = tuple(prompt)
        self._logits = np.empty((0, 0), np.float32)  # of the last token, and of those of a draft after it
        self._failure: EngineError | None = None
        self._ahead = Ahead(drafter) if drafter else None
        self.slot = slot
        self.needed = needed
        """Tokens that room is accounted for."""
        self.tokens: list[int] = []
        """Whose keys and values are cached."""
        self.pending: Sequence[int] = ()
        """The tokens to run next."""
        self.beyond = owner.is_beyond(len(prompt))
        self.cached = 0
        """Tokens of the prompt that came from another text."""

    chooses = False

    @property
    def drafted(self) -> int:
        """Tokens that were run ahead."""
        return self._ahead.drafted if self._ahead else 0

    @property
    def accepted(self) -> int:
        """Those of them that came true."""
        return self._ahead.accepted if self._ahead else 0

    @property
    def waiting(self) -> bool:
        """Whether tokens wait for `Together.step`."""
        return bool(self.pending)

    @property
    def in_prompt(self) -> bool:
        """Whether the prompt is not through yet."""
        return len(self.tokens) < len(self._prompt)

    @property
    def promised(self) -> Sequence[int]:
        """The tokens that it will have cached, the prompt's included that are not run yet."""
        return self._prompt if self.in_prompt else self.tokens

    def shared(self, prompt: Sequence[int]) -> int:
        """Return how many leading tokens of the prompt need no run."""
        return self.cached

    def prefill(self, prompt: Sequence[int]) -> Generator[int, None, None]:
        """Run the prompt: yields the tokens cached, each time until more are; see `KvCache.prefill`."""
        yield len(self.tokens)
        while len(self.tokens) < len(prompt):
            self.pending = prompt[len(self.tokens) :]
            yield len(self.tokens)
            self._raise()

    def append(self, token: int) -> None:
        """Let one more token wait, unless it was run ahead; see `KvCache.append`."""
        if self._ahead and self._ahead.takes(token, self.tokens):
            self.tokens.append(token)
            self._logits = self._logits[1:]
            return
        if not self.beyond and self._owner.is_beyond(len(self.tokens) + 1):
            # Keys under the short factors are of no use any more.
            self.pending, self.beyond = [*self.tokens, token], True
            self.tokens = []
        else:
            self.pending = [token]

    def logits(self) -> np.ndarray:
        """Return the logits after the last token, float32 [vocabulary].

        Raises:
            EngineError: the run failed.

        """
        while self.pending and not self._failure:
            self._owner.step()
        self._raise()
        return self._logits[0]

    def choose_token(self) -> int:
        """Refuse: tokens are chosen by the caller."""
        raise EngineError("this engine chooses no tokens")

    def draft(self, most: int) -> Draft:
        """Return what may follow the token that waits: `most` tokens at most, and no more than there is room for."""
        if not self._ahead or self.in_prompt or len(self.pending) != 1:
            return NO_DRAFT
        left = self.needed - len(self.tokens) - 2  # the last token of an answer is never run
        if not self.beyond and self._owner.graph.switch is not None:
            left = min(left, self._owner.graph.switch - len(self.tokens) - 1)
        return self._ahead.draft(min(most, left))

    def take(self, count: int, logits: np.ndarray, ahead: Sequence[int] = ()) -> None:
        """Note that the first tokens of those that wait were run, and a draft after them."""
        self.tokens += self.pending[:count]
        self.pending = self.pending[count:]
        self._logits = logits
        if self._ahead:
            self._ahead.ran(ahead)

    def fail(self, error: EngineError) -> None:
        """Note that a run failed, and with it what is cached."""
        self.tokens, self.pending, self._failure = [], (), error
        if self._ahead:
            self._ahead.forget()

    def close(self) -> None:
        """End the text; what is cached stays for others while there is room."""
        self._owner.end(self)

    def _raise(self) -> None:
        if self._failure:
            raise self._failure


class _Slot:
    """A place in the arena: a live text's, or what is left of one."""

    def __init__(self) -> None:
        self.live: LiveText | None = None
        self.tokens: list[int] = []
        self.beyond = False
        self.touched = 0
        """Tokens that memory was taken for."""
        self.used = 0
        """The turn when it was last of use."""


class Together:
    """Texts that are decoded together. For use by one thread."""

    def __init__(
        self,
        graph: PackedGraph,
        slots: int,
        *,
        context_length: int,
        cache_bytes: int,
        step_seconds: float = STEP_SECONDS,
        speculation: Speculation = AUTO,
        files: PrefixFiles | None = None,
        drafter: Callable[[], Drafter] = LookupDrafter,
        longest_piece: int = LONGEST_PIECE,
    ) -> None:
        """Begin without texts.

        Args:
            graph: the loaded graph.
            slots: texts that can be live at a time.
            context_length: tokens that a text may have.
            cache_bytes: bytes that texts may keep after their end, outside of the slots.
            step_seconds: how long a step may take where answers wait for it.
            speculation: how far answers run ahead. `AUTO` is `OFF` where that could change their tokens.
            files: what is kept of texts on disk.
            drafter: returns what writes the drafts of a text.
            longest_piece: tokens of prompts that a step has at most.

        """
        self.graph = graph
        self.files = files
        self._planner = Planner(graph, speculation)
        self._drafter = drafter
        self.store = PrefixStore(cache_bytes)
        self._context = context_length
        self._pieces = PiecePlanner(PieceCosts(graph.trial_seconds), step_seconds, longest_piece)
        self._slots = [_Slot() for _ in range(slots)]
        longest_row = max(longest_piece, self._planner.speculation.most + 1)
        self._arena = Arena(graph.shape, slots, min(context_length, _LEAST_CAPACITY), longest_row)
        self._turn = 0
        self._full = False
        self._ended = 0.0  # when the last step was through, where its answers go on
        self.steps: deque[tuple[int, int]] = deque(maxlen=1000)
        """(texts, tokens) of the last runs."""
        self.hit_tokens = self.miss_tokens = self.read_tokens = 0
        """Tokens of prompts that were taken from memory or disk, that were run, and those of the first from disk."""
        self.drafted = self.accepted = 0
        """Tokens that texts which ended ran ahead, and those of them that came true."""

    @property
    def live(self) -> list[LiveText]:
        """The texts that are open."""
        return [slot.live for slot in self._slots if slot.live]

    @property
    def kept_bytes(self) -> int:
        """Bytes of texts that ended, and that memory still has."""
        slots = sum(len(slot.tokens) for slot in self._slots if not slot.live)
        return self.store.num_bytes + slots * self.graph.shape.bytes_per_token

    @property
    def kept_tokens(self) -> int:
        """Tokens of texts that ended, and that memory still has."""
        return sum(len(slot.tokens) for slot in self._slots if not slot.live) + self.store.num_tokens

    def is_beyond(self, length: int) -> bool:
        """Whether a text of this length needs LongRoPE's long factors."""
        return self.graph.switch is not None and length > self.graph.switch

    def open(self, prompt: Sequence[int], needed: int) -> LiveText | None:
        """Begin a text; None where it has to wait, for a slot, for memory, or for a prompt that shares its beginning.

        Args:
            prompt: token ids.
            needed: tokens of prompt and answer.

        Raises:
            UsageError: it does not fit into the context, or into the memory even alone.
            EngineError: the memory cannot be reserved.

        """
        if not prompt:
            raise UsageError("the prompt holds no tokens")
        if needed > self._context:
            raise UsageError(f"{needed} tokens do not fit into the model's context of {self._context}")
        # Who comes later does not pass one that waits for a slot or for memory.
        self._full = self._full or all(slot.live for slot in self._slots) or not self._affordable(needed)
        if self._full:
            return None
        beyond = self.is_beyond(len(prompt))
        source, shared = self._longest(prompt, beyond)
        if self._promised(prompt, beyond) > shared + _WORTH_WAITING:
            return None
        self._grow(needed)
        self._turn += 1
        number = self._place(source, shared)
        shared = self._read(number, prompt, beyond, shared)
        slot = self._slots[number]
        cache = LiveText(self, number, prompt, needed, self._drafter() if self._planner.speculation.most else None)
        cache.tokens, cache.cached = list(prompt[:shared]), shared
        slot.live, slot.tokens, slot.beyond, slot.used = cache, cache.tokens, beyond, self._turn
        slot.touched = max(slot.touched, shared)
        self.hit_tokens, self.miss_tokens = self.hit_tokens + shared, self.miss_tokens + len(prompt) - shared
        return cache

    def step(self) -> None:
        """Run all texts that wait: one token of each answer, and pieces of prompts within the budget."""
        self._full = False
        waiting = [text for text in self.live if text.waiting]
        prompts = any(len(text.pending) > 1 for text in waiting)
        counts = self._counts(waiting) if prompts else dict.fromkeys(waiting, 1)
        for beyond in (False, True):  # a run has one set of rotary factors
            pieces = [(text, counts[text]) for text in waiting if text.beyond == beyond and counts[text]]
            if pieces:
                self._run(pieces, prompts=prompts)
        self._ended = time.perf_counter()

    def end(self, text: LiveText) -> None:
        """End a text, and keep what it has in its slot."""
        slot = self._slots[text.slot]
        if slot.live is text:
            self._turn += 1
            slot.live, slot.tokens, slot.beyond, slot.used = None, text.tokens, text.beyond, self._turn
            self.drafted, self.accepted = self.drafted + text.drafted, self.accepted + text.accepted

    def save_some(self) -> bool:
        """Write one block of a text that ended to disk; return whether there was one to write."""
        if self.files is None:
            return False
        ended = [slot for slot in self._slots if not slot.live]
        for source in (*ended, *self.store):
            if (stop := self.files.unsaved(source.tokens, source.beyond)) is None:
                continue
            if isinstance(source, Kept):
                arrays = [array[:, stop - BLOCK : stop] for array in source.values]
            else:
                number = self._slots.index(source)
                arrays = [buffer[number, :, stop - BLOCK : stop] for buffer in self._arena.buffers]
            self.files.save(source.tokens, source.beyond, stop, arrays)
            return True
        return False

    def _read(self, number: int, prompt: Sequence[int], beyond: bool, shared: int) -> int:
        """Read what the disk has of a prompt, beyond what a slot shares with it; return how much that is then."""
        stored = self.files.stored(prompt[:-1], beyond) if self.files else 0
        if self.files and stored > shared:
            before = shared
            for start, arrays in self.files.read(prompt, beyond, shared, stored):
                for buffer, values in zip(self._arena.buffers, arrays, strict=True):
                    buffer[number, :, start : start + BLOCK] = values
                shared = start + BLOCK
            self.read_tokens += shared - before
        return shared

    def give_up_one(self) -> bool:
        """Give back the memory of a text that ended; return whether there was one."""
        if self.store.give_up_one():
            return True
        ended = [slot for slot in self._slots if not slot.live and slot.touched]
        if not ended or self.live:  # pages go back with the whole arena alone
            return False
        for slot in ended:
            slot.tokens, slot.touched = [], 0
        self._arena = Arena(self.graph.shape, len(self._slots), self._arena.capacity, self._arena.longest_row)
        return True

    def close(self) -> None:
        """Give all memory back."""
        self.store.clear()
        self._slots = [_Slot() for _ in self._slots]
        self._arena = Arena(self.graph.shape, 1, 1)

    def _run(self, pieces: Sequence[tuple[LiveText, int]], *, prompts: bool) -> None:
        # Nothing runs ahead beside prompts, which have the time that a step may take beyond answers.
        drafts = {} if prompts else self._drafts([text for text, _ in pieces])
        rows = [self._row(text, count, drafts.get(text, NO_DRAFT)) for text, count in pieces]
        started = time.perf_counter()
        try:
            results = self.graph.run(self._arena, rows)
        except EngineError as error:
            for text, _ in pieces:
                text.fail(error)
                self._slots[text.slot].tokens = []
            return
        self._measure(rows, time.perf_counter() - started, prompts=prompts)
        for (text, count), row, logits in zip(pieces, rows, results, strict=True):
            slot = self._slots[text.slot]
            text.take(count, logits, row.tokens[count:])
            slot.tokens, slot.beyond = text.tokens, text.beyond
            slot.touched = max(slot.touched, row.stop)

    def _counts(self, waiting: Sequence[LiveText]) -> dict[LiveText, int]:
        """Return how many tokens of each text to run, where there are prompts."""
        answers = [text for text in waiting if len(text.pending) == 1]
        prompts = sorted((text for text in waiting if len(text.pending) > 1), key=self._since)
        work = None
        if answers:
            rows = (Work.of_row(len(text.tokens), 1) for text in answers)
            work = sum(rows, Work(len({text.beyond for text in waiting})))
        found = self._pieces.tokens(
            work, [(len(text.tokens), len(text.pending)) for text in prompts], time.perf_counter() - self._ended
        )
        return dict.fromkeys(answers, 1) | dict(zip(prompts, found, strict=True))

    def _since(self, text: LiveText) -> int:
        return self._slots[text.slot].used

    def _drafts(self, waiting: Sequence[LiveText]) -> dict[LiveText, Draft]:
        """Return what to run ahead."""
        if not (most := self._planner.speculation.most):
            return {}
        found = {text: draft for text in waiting if (draft := text.draft(most)).tokens}
        return self._planner.plan(found, len(waiting))

    def _measure(self, rows: Sequence[RowRun], seconds: float, *, prompts: bool) -> None:
        tokens = sum(len(row.tokens) for row in rows)
        self.steps.append((len(rows), tokens))
        self._pieces.note(Work.of_run(rows), seconds, prompts=prompts)
        if not prompts:
            self._planner.note(tokens, seconds)

    def _row(self, text: LiveText, count: int, draft: Draft) -> RowRun:
        tokens = [*text.pending[:count], *draft.tokens]
        logits = len(draft.tokens) + 1 if count == len(text.pending) else 0
        return RowRun(text.slot, len(text.tokens), tokens, logits, text.beyond)

    def _longest(self, prompt: Sequence[int], beyond: bool) -> tuple["_Slot | Kept | None", int]:
        """Return what shares the longest beginning with a prompt, and how many tokens; the last one always runs."""
        prompt = prompt[:-1]
        slots = [slot for slot in self._slots if slot.tokens and slot.beyond == beyond]
        lengths = [common_length(slot.tokens, prompt) for slot in slots]
        kept, most = self.store.longest(prompt, beyond)
        if most > max(lengths, default=0):
            return kept, most
        best = max(range(len(slots)), key=lengths.__getitem__, default=None)
        return (slots[best], lengths[best]) if best is not None and lengths[best] else (None, 0)

    def _promised(self, prompt: Sequence[int], beyond: bool) -> int:
        running = (text for text in self.live if text.in_prompt and text.beyond == beyond)
        return max((common_length(text.promised, prompt[:-1]) for text in running), default=0)

    def _place(self, source: "_Slot | Kept | None", shared: int) -> int:
        """Return the number of a slot whose first tokens are the shared ones."""
        if isinstance(source, _Slot) and not source.live and shared == len(source.tokens):
            return self._slots.index(source)  # it only goes on
        if isinstance(source, Kept):
            self.store.use(source)  # before others may have to go
        target = self._free_slot(source)
        if isinstance(source, Kept):
            self._arena.put_in(target, source.values, shared)
        elif source and source is not self._slots[target]:
            source.used = self._turn
            self._arena.copy(self._slots.index(source), target, shared)
        return target

    def _free_slot(self, source: "_Slot | Kept | None") -> int:
        """Return a slot without a live text: an empty one, else the longest unused, whose text moves to the store."""
        ended = [slot for slot in self._slots if not slot.live]
        target = min(ended, key=lambda slot: (bool(slot.tokens), slot is source, slot.used))
        number = self._slots.index(target)
        if target.tokens:
            length = len(target.tokens)
            size = length * self.graph.shape.bytes_per_token
            fits = size <= self.store.limit and size <= available_memory() // 2
            if fits and not self.store.holds(target.tokens, target.beyond):
                self.store.add(Kept(target.tokens, target.beyond, self._arena.take_out(number, length)))
        return number

    def _affordable(self, needed: int) -> bool:
        """Whether there is memory for a text, after texts that ended were given up for it.

        Raises:
            UsageError: there is not, and no live text will give any back.

        """
        size = self.graph.shape.bytes_per_token
        while True:
            owed = sum(max(0, slot.live.needed - slot.touched) for slot in self._slots if slot.live)
            free = available_memory() - owed * size
            if needed * size <= free:
                return True
            if not self.give_up_one():
                if self.live:
                    return False
                check_memory(needed, size, free)
                return True

    def _grow(self, needed: int) -> None:
        if needed <= self._arena.capacity:
            return
        capacity = min(self._context, 1 << (needed - 1).bit_length())
        try:
            self._arena.grow(len(self._slots), capacity, [len(slot.tokens) for slot in self._slots])
        except MemoryError as error:
            raise EngineError(f"a KV cache of {capacity} tokens cannot be reserved: {error}") from error
        for slot in self._slots:
            slot.touched = len(slot.tokens)
