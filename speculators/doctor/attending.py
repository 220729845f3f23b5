"""The doctor beside training: before the first step, and at each checkpoint.

A few short held-out prompts are asked for once; what is compared then costs some passes over rows
of a few dozen tokens. Nothing of training changes: no weight, no gradient, no random state.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from speculators.algorithms.base import Drafter
from speculators.config.schema import DoctorConfig
from speculators.conversion.folders import Content, read_content, same_bits
from speculators.data.prepared import SampleSet
from speculators.data.template import VerifierTokenizer
from speculators.doctor.certificate import Certificate
from speculators.doctor.chain import examine
from speculators.doctor.drafting import ProbeDrafts
from speculators.doctor.probe import CONVERSATION, Probe, choose_samples
from speculators.doctor.recording import RecordedProbe, Recording, sketch_of
from speculators.doctor.subject import Subject
from speculators.errors import CheckpointError
from speculators.hidden_states.types import HiddenStates, HiddenStateSource
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.streams import OwnStreams


@dataclass(frozen=True)
class TrainingDoctor:
    """Examines the drafter in training; what `Trainer` calls.

    Attributes:
        settings: what to do when.
        spec: the verifier.
        tokenizer: as training renders prompts.
        head: the teacher.
        revision: of the verifier.
        probes: on the drafter's device.
        own: what the verifier says of its streams; None where it does not run in this process.
        run_dir: gets `parity.json` before the first step.
        say: shows one line.
    """

    settings: DoctorConfig
    spec: VerifierSpec
    tokenizer: VerifierTokenizer
    head: VerifierHead
    revision: str
    probes: Sequence[Probe]
    own: Callable[[Int[Tensor, "token"]], OwnStreams] | None
    run_dir: Path
    say: Callable[[str], None]

    def __call__(self, drafter: Drafter[Any], content: Content | None) -> Callable[[Path], None]:
        """Examine a drafter, and what is about to be written of it.

        Args:
            drafter: in eval mode, as it would be served.
            content: of the checkpoint; None before the first step.

        Returns:
            What adds the certificate to the folder once it is written.

        Raises:
            CheckpointError: before the first step, when something differs.
        """
        if not (self.settings.at_start if content is None else self.settings.at_checkpoints):
            return _nothing
        subject = Subject(
            spec=self.spec,
            tokenizer=self.tokenizer,
            head=self.head,
            revision=self.revision,
            probes=self.probes,
            drafter=drafter,
            live=drafter,
            content=content,
            own=self.own,
        )
        found = Certificate(examine(subject), self.record(drafter, subject.drafts), "training")
        first = found.first_failure
        if content is None:
            found.write(self.run_dir, checkpoint=False)
            if first is not None:
                raise CheckpointError(
                    f"doctor: {first.line} (before the first step; doctor.at_start=false trains "
                    "all the same)"
                )
            return _nothing
        if first is not None:
            self.say(f"warning: doctor: {first.line}")
        return functools.partial(_add, found, content)

    def record(self, drafter: Drafter[Any], drafts: Iterable[ProbeDrafts]) -> Recording:
        """Return what later examinations of a drafter, and its drafts, compare with."""
        dtype = str(self.probes[0].states.aux.dtype) if self.probes else ""
        return Recording(
            verifier=self.spec.name_or_path,
            revision=self.revision,
            tokenizer_hash=self.spec.tokenizer_hash,
            vocabulary=drafter.vocabulary.fingerprint,
            layer_ids=tuple(drafter.config.target_layer_ids or ()),
            rendering=tuple(self.tokenizer.prompt_ids(CONVERSATION)),
            conventions=drafter.conventions(),
            states_dtype=dtype.removeprefix("torch."),
            probes=tuple(map(record_probe, drafts)),
        )


def record_probe(drafts: ProbeDrafts) -> RecordedProbe:
    """Write down one probe: its states, and what is drafted along it."""
    probe, starts = drafts.probe, drafts.starts
    return RecordedProbe(
        probe.input_ids,
        probe.start,
        sketch_of(probe.states),
        dict(zip(starts, drafts.tokens.tolist(), strict=True)),
        tuple(at for at, clear in zip(starts, drafts.clear, strict=True) if clear),
    )


def fetch_probes(
    source: HiddenStateSource,
    sets: Sequence[SampleSet],
    settings: DoctorConfig,
    device: torch.device,
) -> list[Probe]:
    """Return probes with the states training would be given for them.

    Args:
        source: training's own.
        sets: held-out samples, then those of training.
        settings: how many, and how long.
        device: of the drafter.
    """
    chosen = choose_samples(sets, settings.num_prompts)
    probes = []
    for sample, states in zip(chosen, source.stream([[one] for one in chosen]), strict=True):
        if states[0] is not None:
            probe = Probe.of(sample, states[0], settings.num_tokens)
            moved = HiddenStates(probe.states.aux.to(device), probe.states.last.to(device))
            probes.append(Probe(probe.input_ids, probe.start, moved))
    return probes


def _nothing(folder: Path) -> None:
    """Add nothing."""


def _add(certificate: Certificate, content: Content, folder: Path) -> None:
    """Hold that a checkpoint reads back as it was examined, and add its certificate.

    Raises:
        CheckpointError: it does not.
    """
    saved = read_content(folder)
    same = saved.config == json.loads(json.dumps(content.config))
    if not same or saved.tensors.keys() != content.tensors.keys():
        raise CheckpointError(f"{folder}: reads back with other contents; check the disk")
    for name, tensor in content.tensors.items():
        if not same_bits(saved.tensors[name], tensor):
            raise CheckpointError(f"{folder}: {name} reads back differently; check the disk")
    certificate.write(folder, checkpoint=True)
