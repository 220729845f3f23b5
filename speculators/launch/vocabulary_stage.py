"""The draft vocabulary of a run: chosen from the data, measured, written beside the data."""

from __future__ import annotations

from rich.console import Console

from speculators.console import marked
from speculators.data.coverage import VocabularyCoverage, coverage_view, vocabulary_coverage
from speculators.data.prepared import PreparedData
from speculators.data.vocabulary import DraftVocabulary, build_vocabulary, forced_token_ids
from speculators.data.vocabulary_files import save_vocabulary
from speculators.launch.verifier_stage import Verifier


def choose_vocabulary(size: int | None, verifier: Verifier, data: PreparedData) -> DraftVocabulary:
    """Return the draft vocabulary of a size; the verifier's own where none is asked for.

    Raises:
        ConfigError: the size does not fit the verifier or the tokens that must be kept.
    """
    vocab_size, tokenizer = verifier.spec.vocab_size, verifier.tokenizer
    if size is None or size == vocab_size:
        return DraftVocabulary.full(vocab_size)
    return build_vocabulary(
        data.token_counts,
        size,
        vocab_size=vocab_size,
        num_tokens=tokenizer.num_tokens,
        forced_ids=_forced(verifier, data),
    )


def announce_vocabulary(
    vocabulary: DraftVocabulary,
    verifier: Verifier,
    data: PreparedData,
    num_draft_tokens: int,
    console: Console,
) -> VocabularyCoverage:
    """Print what a reduced vocabulary reaches, with warnings; return it.

    Args:
        vocabulary: what can be drafted.
        verifier: names tokens and sizes.
        data: whose supervised tokens are counted, overall and by source.
        num_draft_tokens: tokens per draft.
        console: where to print.
    """
    slices = data.counts_by_source()
    coverage = vocabulary_coverage(
        vocabulary, data.token_counts, num_draft_tokens, slices if len(slices) > 1 else None
    )
    console.print(coverage_view(coverage, verifier.spec.hidden_size, verifier.tokenizer))
    for line in coverage.warnings():
        console.print(marked("warning:", "yellow", f" {line}"), soft_wrap=True)
    return coverage


def write_vocabulary(
    vocabulary: DraftVocabulary,
    coverage: VocabularyCoverage,
    verifier: Verifier,
    data: PreparedData,
) -> None:
    """Write both maps and their description beside the data they were built from."""
    save_vocabulary(
        vocabulary,
        data.folder,
        coverage,
        tokenizer=verifier.tokenizer.fingerprint,
        data=data.fingerprint,
        forced_ids=_forced(verifier, data),
    )


def _forced(verifier: Verifier, data: PreparedData) -> list[int]:
    tokenizer = verifier.tokenizer
    return forced_token_ids(data.token_counts, tokenizer.special_tokens, tokenizer.end_of_turn_ids)
