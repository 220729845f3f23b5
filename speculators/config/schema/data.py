"""`data`: conversations, how they become tokens, and which of them validate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from speculators.config.schema.problem import Problem, at_least, between
from speculators.config.schema.source import PartConfig, SourceConfig


class Truncation(Enum):
    """What happens to a row longer than `training.sequence_length`."""

    keep = "keep"
    drop = "drop"
    split = "split"


class MultiTurn(Enum):
    """How the assistant turns of one conversation become rows (data spec, section 3)."""

    auto = "auto"
    per_turn = "per_turn"
    last = "last"


class UnknownRole(Enum):
    """What happens to a row with a role nobody knows."""

    error = "error"
    drop = "drop"


class BadRows(Enum):
    """What happens to a row that cannot be read."""

    error = "error"
    drop = "drop"


class Unfinished(Enum):
    """What happens to a regenerated answer that reached its longest length."""

    keep = "keep"
    drop = "drop"


class Duplicates(Enum):
    """Which conversations that were there before are left out."""

    keep = "keep"
    exact = "exact"
    near = "near"


class Contaminated(Enum):
    """What happens to a conversation that holds an evaluation prompt."""

    drop = "drop"
    keep = "keep"


@dataclass
class RegenerateConfig:
    """Let the verifier write the answers anew, so that the drafter learns what it will serve.

    The servers of `hidden_states.endpoints` answer where there are any, otherwise the verifier
    runs in this process.
    """

    enabled: bool = False
    """Replace every assistant turn by the verifier's own answer."""
    max_new_tokens: int = 512
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    unfinished: Unfinished = Unfinished.keep
    """An answer without an end: keep it (supervised up to where it was cut), or drop it. The
    conversation ends there in both cases."""
    capture: bool = False
    """prepare: also store the hidden states of the regenerated rows (hidden_states.store_path)."""
    batch_size: int = 32
    """Conversations decoded together by a verifier in this process."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from at_least(self, "max_new_tokens", 1)
        yield from at_least(self, "temperature", 0)
        yield from at_least(self, "batch_size", 1)


@dataclass
class DataConfig(SourceConfig):
    """Where the conversations come from and how they are tokenised."""

    name: str = MISSING
    """Short name of the choice, used in run names (`tiny`, `jsonl`, `sharegpt`)."""
    sources: dict[str, PartConfig] = field(default_factory=dict)
    """A mixture: sources by name, instead of `path` or `hub_id`."""
    seed: int | None = None
    """Draws validation rows, `max_samples` and regenerated answers; null: the run's `seed`."""
    validation_path: str | None = None
    """Separate validation conversations; null holds out `training.validation_fraction`."""
    truncation: Truncation = Truncation.keep
    """Rows longer than the sequence. keep: their beginning, the end is cut; drop: none of it;
    split: all of it, as several samples. Counted each time."""
    multi_turn: MultiTurn = MultiTurn.auto
    """auto: one row where the template renders history unchanged, else as few as are exact."""
    min_supervised_tokens: int = 2
    """Rows with fewer assistant tokens (after truncation) are dropped and counted."""
    unknown_role: UnknownRole = UnknownRole.error
    """Rows with an unknown role."""
    bad_rows: BadRows = BadRows.error
    """Rows that cannot be read, and answers whose first token cannot be told: stop with file and
    line, or drop and count them."""
    duplicates: Duplicates = Duplicates.keep
    """keep: count repeated samples; exact: use equal conversations once; near: also those that
    share most of their words (`duplicate_similarity`)."""
    duplicate_similarity: float = 0.8
    """near: share of common five-word pieces (Jaccard, estimated) from which two conversations
    are the same."""
    prompt_sets: Any = None
    """Prompt files (one or a list) that are evaluated on; conversations that hold one of their
    prompts are found."""
    contaminated: Contaminated = Contaminated.drop
    """Conversations that hold an evaluation prompt: drop them, or keep them; counted either way."""
    regenerate: RegenerateConfig = field(default_factory=RegenerateConfig)
    """On-policy answers."""
    num_workers: int = 0
    """Processes that tokenise; 0 does it in this one."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges, and that there are not two sources (commands say who needs one)."""
        yield from super().problems()
        yield from at_least(self, "min_supervised_tokens", 2)
        yield from at_least(self, "num_workers", 0)
        yield from at_least(self, "seed", 0)
        yield from between(self, "duplicate_similarity", 0.5, 1.0)
        if self.sources and (self.path is not None or self.hub_id is not None):
            yield Problem("sources", list(self.sources), "a mixture has no path or hub_id itself")
        if not self.sources and self.name == "mixture":
            yield Problem("sources", {}, "no source: add some, +data@data.sources.NAME=PRESET")
        for name, part in self.sources.items():
            for problem in part.problems():
                yield problem._replace(field=f"sources.{name}.{problem.field}")
