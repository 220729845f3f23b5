"""`expected`: what a published run measured, for comparison with one's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import MISSING

from speculators.config.schema.problem import Problem, at_least, between, positive


@dataclass
class ExpectedResult:
    """Published numbers on one set of prompts."""

    num_prompts: int | None = None
    """Prompts decoded; null: not stated."""
    acceptance_length: float = MISSING
    """Tokens per verifier call, the verifier's own counted."""
    acceptance_rate: float | None = None
    """Accepted over drafted tokens."""
    acceptance_per_position: list[float] | None = None
    """Share of drafts whose tokens 1..k were all accepted."""
    tokens_per_second: float | None = None
    """Output throughput, on the hardware named; never judged."""
    speedup: float | None = None
    """Over plain decoding there; never judged."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges, and that the positions add up to the length."""
        yield from at_least(self, "num_prompts", 1)
        yield from at_least(self, "acceptance_length", 1)
        yield from between(self, "acceptance_rate", 0, 1)
        shares = self.acceptance_per_position
        if shares is not None and abs(1 + sum(shares) - self.acceptance_length) > 0.01:
            yield Problem(
                "acceptance_per_position",
                shares,
                f"adds up to a length of {1 + sum(shares):.3f}, not {self.acceptance_length}",
            )


@dataclass
class ExpectedConfig:
    """A published row: where it stands, and under what conditions it was measured."""

    source: str = MISSING
    """Where the numbers are published."""
    verifier: str = MISSING
    """Hub id of the verifier."""
    num_draft_tokens: int | None = None
    """Tokens drafted per call; null: not stated."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    max_new_tokens: int | None = None
    """Longest answer; null: not stated."""
    hardware: str | None = None
    """What it was measured on."""
    tolerance: float = 0.1
    """Share by which the accepted tokens per draft (acceptance length - 1) may differ."""
    suites: dict[str, ExpectedResult] = field(default_factory=dict)
    """Numbers by suite (`evaluation=NAME`)."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from at_least(self, "num_draft_tokens", 1)
        yield from at_least(self, "temperature", 0)
        yield from at_least(self, "max_new_tokens", 1)
        yield from positive(self, "tolerance")
        for name, suite in self.suites.items():
            for problem in suite.problems():
                yield problem._replace(field=f"suites.{name}.{problem.field}")
