"""`doctor`: when training is examined, and how a checkpoint is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speculators.config.schema.problem import Problem, at_least


@dataclass
class DoctorConfig:
    """A few short prompts on which training, files and engine are compared."""

    at_start: bool = True
    """train: examine before the first step, and stop when something differs."""
    at_checkpoints: bool = True
    """train: examine every checkpoint, and write what was found into it (`parity.json`)."""
    num_prompts: int = 4
    """Prompts compared."""
    num_tokens: int = 32
    """Tokens of each answer that are compared."""
    tests: bool = True
    """doctor run=DIR: test causes on the run's best checkpoint; false reads its files alone."""
    num_samples: int = 24
    """doctor run=DIR: held-out samples, and training samples, to test causes on."""
    endpoint: str | None = None
    """doctor: base URL of a running `vllm serve CHECKPOINT`, to be compared too."""
    max_new_tokens: int = 64
    """doctor: longest answer of that server, in tokens."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from at_least(self, "num_prompts", 1)
        yield from at_least(self, "num_tokens", 8)
        yield from at_least(self, "num_samples", 1)
        yield from at_least(self, "max_new_tokens", 1)
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            yield Problem("endpoint", self.endpoint, "must be a URL such as http://localhost:8000")
