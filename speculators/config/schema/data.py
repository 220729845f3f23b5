"""`data`: conversations, how they become tokens, and which of them validate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from speculators.config.schema.problem import Problem, at_least


class DataFormat(Enum):
    """Layout of one row (auto: recognised by its keys, row by row)."""

    auto = "auto"
    sharegpt = "sharegpt"
    messages = "messages"
    prompt_response = "prompt_response"
    tokens = "tokens"


class Truncation(Enum):
    """What happens to a row longer than `training.sequence_length`."""

    right = "right"
    drop = "drop"


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
class DataConfig:
    """Where the conversations come from and how they are tokenised."""

    name: str = MISSING
    """Short name of the choice, used in run names (`tiny`, `jsonl`, `sharegpt`)."""
    path: str | None = None
    """JSON Lines file or folder of them; `tiny` is the set this package generates."""
    validation_path: str | None = None
    """Separate validation conversations; null holds out `training.validation_fraction`."""
    hub_id: str | None = None
    """Hub data set, for presets; null when `path` is given."""
    hub_subset: str | None = None
    """Configuration name of the hub data set."""
    hub_split: str = "train"
    """Split of the hub data set."""
    hub_revision: str | None = None
    """Revision of the hub data set."""
    format: DataFormat = DataFormat.auto
    """Row layout."""
    max_samples: int | None = None
    """Use at most this many conversations, drawn by the seed before tokenising."""
    truncation: Truncation = Truncation.right
    """Rows longer than the sequence: cut their end, or drop them. Both are counted."""
    multi_turn: MultiTurn = MultiTurn.auto
    """auto: one row where the template renders history unchanged, else as few as are exact."""
    min_supervised_tokens: int = 2
    """Rows with fewer assistant tokens (after truncation) are dropped and counted."""
    unknown_role: UnknownRole = UnknownRole.error
    """Rows with an unknown role."""
    bad_rows: BadRows = BadRows.error
    """Rows that cannot be read: stop with file and line, or drop and count them."""
    regenerate: RegenerateConfig = field(default_factory=RegenerateConfig)
    """On-policy answers."""
    num_workers: int = 0
    """Processes that tokenise; 0 does it in this one."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges, and that there are not two sources (commands say who needs one)."""
        yield from at_least(self, "max_samples", 1)
        yield from at_least(self, "min_supervised_tokens", 2)
        yield from at_least(self, "num_workers", 0)
        if self.path is not None and self.hub_id is not None:
            yield Problem("path", self.path, "given together with data.hub_id: keep one of them")
