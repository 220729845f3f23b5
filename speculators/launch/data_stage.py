"""The data stage: conversations as samples, their answers rewritten where that is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from speculators.config.schema import Config, HiddenStatesMode
from speculators.data.dialogue import LENGTH, STOP, Answer, Answerer, Dialogue
from speculators.data.prepare import prepare
from speculators.data.prepared import PreparedData
from speculators.hidden_states.online.answers import OnlineAnswers
from speculators.launch.online_stage import expectation
from speculators.launch.target_layers import target_layer_ids
from speculators.launch.verifier_stage import Verifier, longest_sample

_TOGETHER = 4096


def prepare_data(config: Config, verifier: Verifier, *, only_found: bool = False) -> PreparedData:
    """Return the tokenised conversations, from the cache when the same inputs were prepared.

    No sample is longer than a packed row, nor than the verifier's context: behind its end there are
    no states worth learning from. With `only_found` what was not
    prepared before is a DataError.
    """
    settings = config.data
    rewrites = settings.regenerate.enabled
    return prepare(
        settings,
        verifier.tokenizer,
        vocab_size=verifier.spec.vocab_size,
        sequence_length=longest_sample(config, verifier),
        validation_fraction=config.training.validation_fraction,
        seed=config.data_seed,
        cache_dir=Path(config.cache_dir),
        answerer=_answerer(config, verifier) if rewrites else None,
        verifier=verifier.revision() if rewrites else "",
        only_found=only_found,
    )


def _answerer(config: Config, verifier: Verifier) -> Answerer:
    """Return who answers: servers where the hidden states come from servers, else this process."""
    settings = config.hidden_states
    if settings.mode is HiddenStatesMode.embedded or not settings.endpoints:
        return EmbeddedAnswers(config, verifier)
    spec = verifier.spec
    return OnlineAnswers(
        settings,
        (*target_layer_ids(config, spec), spec.num_layers),
        expectation(config, verifier),
        verifier.tokenizer.end_of_turn_ids,
    )


class EmbeddedAnswers:
    """An `Answerer` that runs the verifier in this process.

    Conversations advance turn by turn together, one batched generation per turn.

    Args:
        config: batch size.
        verifier: its model is loaded with the first question.
    """

    def __init__(self, config: Config, verifier: Verifier) -> None:
        self._settings = config.data.regenerate
        self._verifier = verifier

    def carry_on(self, dialogues: Iterable[Dialogue]) -> Iterator[Dialogue]:
        """Take every dialogue to its end, and yield them in the order given."""
        waiting = iter(dialogues)
        while together := list(itertools.islice(waiting, _TOGETHER)):
            for dialogue in together:
                dialogue.begin()
            while active := [one for one in together if one.question is not None]:
                self._answer(active)
            yield from together

    def _answer(self, dialogues: list[Dialogue]) -> None:
        questions = [one.question for one in dialogues if one.question is not None]
        stop_ids = self._verifier.tokenizer.end_of_turn_ids

        def finished(index: int, tokens: list[int]) -> None:
            reason = STOP if tokens[-1] in stop_ids else LENGTH
            dialogues[index].take(Answer(tokens, reason, "transformers"))

        self._verifier.model().generate(
            [question.prompt for question in questions],
            max_new_tokens=[question.max_new_tokens for question in questions],
            temperature=self._settings.temperature,
            seeds=[question.seed for question in questions],
            batch_size=self._settings.batch_size,
            stop_ids=sorted(stop_ids),
            finished=finished,
        )
