"""The doctor beside training: asks for its probes once, before the first step."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from rich.console import Console

from speculators.algorithms.base import Drafter
from speculators.config.schema import Config, HiddenStatesMode
from speculators.conversion.folders import Content
from speculators.data.prepared import PreparedData
from speculators.doctor.attending import TrainingDoctor, fetch_probes
from speculators.hidden_states.types import HiddenStateSource
from speculators.launch.verifier_stage import Verifier
from speculators.training.certify import Accompany, Certify
from speculators.training.ranks import Ranks


def attend(
    config: Config,
    verifier: Verifier,
    source: HiddenStateSource,
    data: PreparedData,
    *,
    ranks: Ranks,
    console: Console,
) -> Certify | None:
    """Return what examines the drafter beside training; None where nothing is to be examined.

    Args:
        config: `doctor` and `hidden_states.mode` are used.
        verifier: the verifier; compared with where it runs in this process.
        source: of training's hidden states.
        data: held-out samples, and those of training where they are too few.
        ranks: the main process examines.
        console: where warnings go.
    """
    settings = config.doctor
    if not (settings.at_start or settings.at_checkpoints):
        return None
    if not ranks.is_main:
        return _leave_it
    embedded = config.hidden_states.mode is HiddenStatesMode.embedded
    return TrainingDoctor(
        settings,
        verifier.spec,
        verifier.tokenizer,
        verifier.head(),
        verifier.revision(),
        fetch_probes(source, (data.validation, data.train), settings, verifier.device),
        verifier.model().own_streams if embedded else None,
        Path(config.output_dir),
        functools.partial(console.print, style="yellow", soft_wrap=True),
    )


def _leave_it(drafter: Drafter[Any], content: Content | None) -> Accompany:
    """Leave it to the main process."""
    return lambda folder: None
