"""What a server counts while it drafts: vLLM's counters as they stand in `/metrics`.

Names and meaning: vLLM specification, section 5. Counters only grow, so what a request caused is
the difference of two readings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speculators.errors import LaunchError
from speculators.evaluation.acceptance import Acceptance

_PREFIX = "vllm:spec_decode_num_"
_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_POSITION = re.compile(r'(?:^|,)position="(\d+)"')


@dataclass(frozen=True)
class DraftCounters:
    """Counters of one server, its engines added up.

    Attributes:
        drafts: verify calls with drafted tokens.
        draft_tokens: tokens drafted.
        accepted_tokens: of them, those that stood.
        per_position: drafts whose tokens 1..k were all accepted, k = 1..K.
    """

    drafts: int
    draft_tokens: int
    accepted_tokens: int
    per_position: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> DraftCounters:
        """Read Prometheus' text format.

        Raises:
            LaunchError: the server does not draft, or counts in another way.
        """
        sums: dict[str, int] = {}
        positions: dict[int, int] = {}
        for line in text.splitlines():
            found = _LINE.match(line)
            if found is None or not found[1].startswith(_PREFIX):
                continue
            name, value = found[1].removeprefix(_PREFIX), found[3]
            if name == "accepted_tokens_per_pos_total":
                place = _POSITION.search(found[2] or "")
                if place is not None:
                    k = int(place[1])
                    positions[k] = positions.get(k, 0) + int(float(value))
            elif name.endswith("_total"):
                sums[name] = sums.get(name, 0) + int(float(value))
        if not sums and not positions:
            raise LaunchError(
                f"no {_PREFIX}drafts_total in /metrics: the server does not draft; start it with "
                "`vllm serve CHECKPOINT`, without --disable-log-stats"
            )
        missing = {"drafts_total", "draft_tokens_total", "accepted_tokens_total"} - sums.keys()
        if missing or sorted(positions) != list(range(len(positions))) or not positions:
            names = ", ".join(_PREFIX + name for name in sorted(missing)) or "per position"
            raise LaunchError(
                f"/metrics lacks counters ({names}): another version of vLLM than this reads "
                "(0.18 or newer)"
            )
        return cls(
            sums["drafts_total"],
            sums["draft_tokens_total"],
            sums["accepted_tokens_total"],
            tuple(positions[k] for k in range(len(positions))),
        )

    @staticmethod
    def counted(text: str) -> bool:
        """Return whether a server drafts: one that does not has no such counters."""
        return any(line.startswith(_PREFIX) for line in text.splitlines())

    @classmethod
    def total(cls, counts: Sequence[DraftCounters]) -> DraftCounters:
        """Add up what several spans of time gained; at least one."""
        positions = zip(*(count.per_position for count in counts), strict=True)
        return cls(
            drafts=sum(count.drafts for count in counts),
            draft_tokens=sum(count.draft_tokens for count in counts),
            accepted_tokens=sum(count.accepted_tokens for count in counts),
            per_position=tuple(map(sum, positions)),
        )

    def __sub__(self, earlier: DraftCounters) -> DraftCounters:
        return DraftCounters(
            self.drafts - earlier.drafts,
            self.draft_tokens - earlier.draft_tokens,
            self.accepted_tokens - earlier.accepted_tokens,
            tuple(a - b for a, b in zip(self.per_position, earlier.per_position, strict=True)),
        )

    @property
    def emitted(self) -> int:
        """Tokens the verify calls gave: accepted ones and one of the verifier's own each."""
        return self.drafts + self.accepted_tokens

    def acceptance(self) -> Acceptance:
        """Return the same as statistics of one prompt."""
        reached = np.array([self.per_position], np.int64)
        at_risk = np.array([[self.drafts, *self.per_position[:-1]]], np.int64)
        return Acceptance(reached, at_risk, np.array([self.drafts], np.int64))
