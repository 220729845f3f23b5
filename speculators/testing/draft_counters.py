"""vLLM's counters of speculative decoding, as `/metrics` shows them (vLLM specification, 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

DraftingFunction = Callable[[Sequence[int], int, Sequence[int]], tuple[Sequence[int], list[int]]]
"""(token ids, longest answer, ids that end it) -> (answer, accepted tokens of each draft)."""


class DraftCounters:
    """What a drafting server counts.

    Args:
        num_draft_tokens: tokens per draft; 0 for a server that does not draft, which shows none.
        model: label of every line.
    """

    def __init__(self, num_draft_tokens: int, model: str) -> None:
        self._size, self._model = num_draft_tokens, model
        self._drafts = 0
        self._per_position = [0] * num_draft_tokens

    def count(self, accepted: Sequence[int]) -> None:
        """Count the drafts of one answer."""
        self._drafts += len(accepted)
        for run in accepted:
            for position in range(run):
                self._per_position[position] += 1

    def text(self) -> str:
        """Return Prometheus' text format."""
        if not self._size:
            return ""
        labels = f'engine="0",model_name="{self._model}"'
        sums = {
            "drafts": self._drafts,
            "draft_tokens": self._drafts * self._size,
            "accepted_tokens": sum(self._per_position),
        }
        lines: list[str] = []
        for name, value in sums.items():
            name = f"vllm:spec_decode_num_{name}"
            lines += [f"# TYPE {name}_total counter", f"{name}_total{{{labels}}} {value:.1f}"]
            lines.append(f"{name}_created{{{labels}}} 1.795369e+09")
        for position, value in enumerate(self._per_position):
            name = "vllm:spec_decode_num_accepted_tokens_per_pos"
            place = f'{labels},position="{position}"'
            lines.append(f"{name}_total{{{place}}} {value:.1f}")
            lines.append(f"{name}_created{{{place}}} 1.795369e+09")
        return "\n".join(lines) + "\n"
