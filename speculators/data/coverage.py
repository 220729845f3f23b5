"""What a reduced draft vocabulary costs, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from rich.table import Table
from torch import Tensor

from speculators.data.template import VerifierTokenizer
from speculators.data.vocabulary import DraftVocabulary

_LEFT_OUT = 20
_WARN_BELOW = 0.9
_WARN_SHARE = 0.01
_SHARES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
_SUGGESTED_SHARE = 0.995
_MULTIPLE = 128


@dataclass(frozen=True)
class VocabularyCoverage:
    """Reach of a draft vocabulary (draft-vocabulary specification, section 4).

    Attributes:
        size: tokens that can be drafted, Vd.
        vocab_size: rows of the verifier's head, V.
        coverage: share of supervised tokens that can be drafted; also the highest acceptance any
            drafter can reach per position.
        tau_cap: highest acceptance length, if positions were independent.
        num_draft_tokens: positions per draft, K, that `tau_cap` is for.
        num_unseen: draftable tokens that never occur.
        left_out: most frequent tokens that cannot be drafted, with counts.
        slices: coverage by slice of the data, for slices above one percent of the tokens.
    """

    size: int
    vocab_size: int
    coverage: float
    tau_cap: float
    num_draft_tokens: int
    num_unseen: int
    left_out: tuple[tuple[int, int], ...]
    slices: Mapping[str, float]

    def head_bytes(self, hidden_size: int, bytes_per_value: int = 2) -> int:
        """Return the memory of the drafter's head."""
        return self.size * hidden_size * bytes_per_value

    def warnings(self) -> list[str]:
        """Return a line for the whole, and for every slice, that is covered badly."""
        shares = {"the data": self.coverage, **self.slices}
        return [
            f"the draft vocabulary covers only {share:.1%} of {name}: acceptance there stays below "
            "that at every position; raise speculator.draft_vocab_size"
            for name, share in shares.items()
            if share < _WARN_BELOW
        ]


def tau_cap(coverage: float, num_draft_tokens: int) -> float:
    """Return 1 + the sum of coverage^k for k = 1..K."""
    return 1.0 + sum(coverage**k for k in range(1, num_draft_tokens + 1))


def _share(counts: Int[Tensor, "vocab"], vocabulary: DraftVocabulary) -> float:
    total = int(counts.sum())
    return int(counts[vocabulary.ids].sum()) / total if total else 1.0


def vocabulary_coverage(
    vocabulary: DraftVocabulary,
    counts: Int[Tensor, "vocab"],
    num_draft_tokens: int,
    slices: Mapping[str, Int[Tensor, "vocab"]] | None = None,
) -> VocabularyCoverage:
    """Measure a draft vocabulary on the supervised tokens of the data.

    Args:
        vocabulary: what can be drafted.
        counts: how often each token is supervised.
        num_draft_tokens: tokens per draft, K.
        slices: the same counts by source, language or domain.
    """
    coverage = _share(counts, vocabulary)
    outside = counts.clone()
    outside[vocabulary.ids] = 0
    order = torch.argsort(outside, descending=True, stable=True)[:_LEFT_OUT].tolist()
    total = int(counts.sum())
    return VocabularyCoverage(
        size=len(vocabulary),
        vocab_size=vocabulary.vocab_size,
        coverage=coverage,
        tau_cap=tau_cap(coverage, num_draft_tokens),
        num_draft_tokens=num_draft_tokens,
        num_unseen=int((counts[vocabulary.ids] == 0).sum()),
        left_out=tuple((i, int(outside[i])) for i in order if int(outside[i]) > 0),
        slices={
            name: _share(of, vocabulary)
            for name, of in (slices or {}).items()
            if int(of.sum()) > _WARN_SHARE * total
        },
    )


def _size_for(counts: Int[Tensor, "vocab"], coverage: float) -> int:
    ordered = counts.sort(descending=True).values.cumsum(0).double()
    if not len(ordered) or float(ordered[-1]) == 0:
        return 1
    reached = ordered >= coverage * ordered[-1] - 1e-9
    return int(reached.int().argmax()) + 1


def coverage_sizes(counts: Int[Tensor, "vocab"]) -> dict[str, int]:
    """Return the smallest draft vocabulary for shares of the supervised tokens, by percent."""
    return {f"{100 * share:g}": _size_for(counts, share) for share in _SHARES}


def suggest_size(counts: Int[Tensor, "vocab"], num_forced: int) -> int:
    """Return a size for the draft vocabulary, or 0 where reducing it is not worth it.

    The smallest that covers 99.5 % of the supervised tokens (at seven drafted tokens the
    acceptance length can then reach 7.86 of 8) and holds the tokens that are always kept, rounded
    up to a multiple of 128, as long as that is at most half of the vocabulary.

    Args:
        counts: how often each token is supervised.
        num_forced: tokens that are kept whatever their count.
    """
    needed = _size_for(counts, _SUGGESTED_SHARE) + num_forced
    size = -(-needed // _MULTIPLE) * _MULTIPLE
    return size if 2 * size <= len(counts) else 0


def coverage_view(
    report: VocabularyCoverage, hidden_size: int, tokenizer: VerifierTokenizer | None = None
) -> Table:
    """Return the coverage report as a rich table."""
    table = Table(title="Draft vocabulary", title_justify="left", box=None, show_header=False)
    table.add_row("tokens", f"{report.size:,} of {report.vocab_size:,}")
    table.add_row("coverage", f"{report.coverage:.2%} of supervised tokens")
    best = report.num_draft_tokens + 1
    table.add_row("acceptance length", f"at most {report.tau_cap:.2f} instead of {best}")
    table.add_row("head", f"{report.head_bytes(hidden_size) / 1e6:,.0f} MB in bfloat16")
    if report.num_unseen:
        table.add_row("never seen", f"{report.num_unseen:,} of the draftable tokens")
    for name, share in report.slices.items():
        table.add_row(f"coverage of {name}", f"{share:.2%}")
    if report.left_out:
        shown = (
            f"{tokenizer.token_text(i) if tokenizer else i!r} x{count}"
            for i, count in report.left_out
        )
        table.add_row("first left out", ", ".join(shown))
    return table
