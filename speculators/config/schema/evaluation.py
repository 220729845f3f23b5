"""`evaluation`: speculative decoding of real prompts, against plain decoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from speculators.config.schema.problem import Problem, at_least
from speculators.config.schema.suite import SuiteConfig


class Sampling(Enum):
    """How a drafted token is accepted at temperature > 0; both leave the distribution unchanged."""

    one_hot = "one_hot"
    ratio = "ratio"


@dataclass
class EvaluationConfig:
    """Prompts and decoding of one evaluation."""

    name: str = "default"
    """Short name of the choice."""
    enabled: bool = True
    """Decode after training."""
    prompts: str | None = None
    """File of prompts (`turns` or `prompt`); null takes the suites, or without any held-out
    conversations."""
    suites: dict[str, SuiteConfig] = field(default_factory=dict)
    """Published prompt sets by name; `evaluation=[mt_bench,gsm8k]` chooses several."""
    num_prompts: int | None = 40
    """Use n prompts; null uses all. Of a suite, n that are spread evenly over it, so that ordered
    categories all occur; of a file or held-out conversations, the first n."""
    skip_long: bool = False
    """Leave out, and count, prompts that leave no room in the verifier's context; false stops."""
    max_new_tokens: int = 128
    """Longest answer, in tokens."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    sampling: Sampling = Sampling.one_hot
    """one_hot: drafts by argmax, accepted with p(draft); ratio: drafts sampled from q, accepted
    with min(1, p/q)."""
    num_draft_tokens: int | None = None
    """Tokens drafted at a time; null: as many as the checkpoint says. A server is told with
    `--speculative-config '{"num_speculative_tokens": N}'`."""
    compare: bool = True
    """Also decode without drafting: proves losslessness and measures the speed-up. With an
    endpoint: also decode in this process, and compare tokens and acceptance."""
    endpoint: str | None = None
    """evaluate: base URL of a running `vllm serve CHECKPOINT`, which decodes the prompts."""
    baseline_endpoint: str | None = None
    """evaluate: base URL of the same verifier served without drafting, to compare speed and answers
    with; nothing is decoded in this process then."""
    concurrency: list[int] = field(default_factory=lambda: [1])
    """Requests at once: a server's latency and throughput are measured at each. Acceptance per
    prompt is always read with one. In this process: batch sizes for which times are measured and
    the best number of drafted tokens is worked out."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from at_least(self, "num_prompts", 1)
        yield from at_least(self, "max_new_tokens", 1)
        yield from at_least(self, "temperature", 0)
        yield from at_least(self, "num_draft_tokens", 1)
        for name, suite in self.suites.items():
            for problem in suite.problems():
                yield problem._replace(field=f"suites.{name}.{problem.field}")
        for key in ("endpoint", "baseline_endpoint"):
            url = getattr(self, key)
            if url is not None and not url.startswith(("http://", "https://")):
                yield Problem(key, url, "must be a URL such as http://localhost:8000")
        if self.baseline_endpoint is not None and self.endpoint is None:
            yield Problem(
                "baseline_endpoint", self.baseline_endpoint, "compares servers: give endpoint too"
            )
        if not self.concurrency or min(self.concurrency) < 1:
            yield Problem("concurrency", self.concurrency, "must be numbers of 1 or more")
        if self.prompts is not None and self.suites:
            yield Problem("prompts", self.prompts, "given together with suites: keep one of them")
