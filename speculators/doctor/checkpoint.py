"""`speculators doctor checkpoint=DIR`: gathers all a checkpoint can be compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from speculators.algorithms.base import Drafter
from speculators.config.schema import Config, EvaluationConfig
from speculators.conversion.folders import Content, read_content
from speculators.conversion.layout import read_model, read_serving_config
from speculators.data.template import VerifierTokenizer
from speculators.data.types import Turn
from speculators.doctor.certificate import Certificate, read_recording
from speculators.doctor.chain import examine
from speculators.doctor.engine import EngineAnswers
from speculators.doctor.probe import CONVERSATION, QUESTIONS, Probe
from speculators.doctor.recording import Recording
from speculators.doctor.subject import Subject
from speculators.errors import CheckpointError, ConfigError, LaunchError
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.prompts import Prompt, read_prompts
from speculators.evaluation.result import EvaluationResult
from speculators.evaluation.served import evaluate_served
from speculators.launch.evaluate import (
    FROM_CHECKPOINT,
    expected_server,
    training_config,
    with_verifier,
)
from speculators.launch.verifier_stage import Verifier

_AUTO = "auto"


class CheckpointExamination:
    """One checkpoint and the verifier it drafts for.

    Args:
        config: `checkpoint`, `verifier`, `doctor`, `evaluation.prompts` and `device` are used.
        console: shows progress.

    Attributes:
        folder: the checkpoint itself, behind any link.
        verifier: the one it names, unless the configuration names another.

    Raises:
        CheckpointError: the folder is not a checkpoint, or names no verifier.
    """

    def __init__(self, config: Config, console: Console) -> None:
        self._asked = Path(config.checkpoint or "").expanduser()
        self.folder = self._asked.resolve()
        self._serving = read_serving_config(self.folder)
        self._console = console
        self._served_template = config.verifier.template
        self._trained_with = training_config(self.folder)
        if config.verifier.name_or_path == FROM_CHECKPOINT:
            config = with_verifier(config, self._trained_with, self._serving)
        self._config = config
        self.verifier = Verifier(config)

    @cached_property
    def subject(self) -> Subject:
        """Everything there is to compare."""
        content = read_content(self.folder)
        recorded = read_recording(self.folder) or self._recorded_by_run()
        drafter, problem = self._drafter()
        probes = [] if drafter is None else self._probes(drafter, recorded)
        return Subject(
            spec=self.verifier.spec,
            tokenizer=self._served_tokenizer(),
            head=self.verifier.head(),
            revision=self.verifier.revision(),
            probes=probes,
            drafter=drafter,
            content=content,
            problem=problem,
            recorded=recorded,
            own=self.verifier.model().own_streams if probes else None,
            engine=self._engine(drafter, content, probes) if drafter is not None else None,
        )

    def certificate(self) -> Certificate:
        """Examine, stage by stage."""
        subject = self.subject
        facts: dict[str, Any] = {"verifier": subject.spec.name_or_path}
        if (engine := subject.engine) is not None:
            facts |= {
                "engine": engine.name,
                "served_acceptance_length": engine.served.acceptance.length,
                "in_process_acceptance_length": engine.here.acceptance.length,
            }
        recorded = read_recording(self.folder)
        return Certificate(examine(subject), recorded, "speculators doctor", facts)

    def read(self, folder: Path) -> Drafter[Any]:
        """Return the drafter of a checkpoint of the same run.

        Raises:
            CheckpointError: it cannot be read.
            ConfigError: neither can its settings.
        """
        verifier = self.verifier
        drafter = read_model(
            folder,
            spec=verifier.spec,
            tables=verifier.tables(),
            attention=self._config.attention,
        )
        return drafter.to(verifier.device).eval()

    def _drafter(self) -> tuple[Drafter[Any] | None, str | None]:
        """Return the drafter, or why there is none."""
        try:
            return self.read(self.folder), None
        except (CheckpointError, ConfigError) as error:
            return None, str(error).splitlines()[0]

    def _served_tokenizer(self) -> VerifierTokenizer:
        """Return the tokenizer with the template an engine uses: the model's own, if not told."""
        if self._served_template != _AUTO:
            return self.verifier.tokenizer
        spec, settings = self.verifier.spec, self._config.verifier
        return VerifierTokenizer.load(
            spec.folder,
            template_arguments=settings.template_arguments,
            eos_token_ids=spec.eos_token_ids,
            trust_remote_code=settings.trust_remote_code,
        )

    def _recorded_by_run(self) -> Recording | None:
        """Return the little that a checkpoint without `parity.json` tells by its `run.yaml`."""
        if self._trained_with is None:
            return None
        verifier = Verifier(dataclasses.replace(self._config, verifier=self._trained_with.verifier))
        return Recording(
            verifier=verifier.spec.name_or_path,
            revision=verifier.revision(),
            tokenizer_hash="",
            vocabulary="",
            layer_ids=(),
            rendering=tuple(verifier.tokenizer.prompt_ids(CONVERSATION)),
            conventions=None,
            states_dtype="",
            probes=(),
        )

    def _probes(self, drafter: Drafter[Any], recorded: Recording | None) -> list[Probe]:
        """Return the recorded probes, else answers of the verifier, with states captured here."""
        if recorded is not None and recorded.probes:
            texts = [(probe.input_ids, probe.start) for probe in recorded.probes]
        else:
            texts = self._answers()
        model, layer_ids = self.verifier.model(), drafter.config.target_layer_ids or []
        states = model.capture([ids for ids, _ in texts], layer_ids, max_tokens=1)
        return [Probe(ids, start, one) for (ids, start), one in zip(texts, states, strict=True)]

    def _answers(self) -> list[tuple[torch.Tensor, int]]:
        settings, tokenizer = self._config.doctor, self._served_tokenizer()
        named = self._config.evaluation.prompts
        if named is None:
            turns = [[Turn("user", text)] for text in QUESTIONS]
        else:
            turns = [p.history([]) for p in read_prompts(Path(named), settings.num_prompts)]
        prompts = [tokenizer.prompt_ids(one) for one in turns[: settings.num_prompts]]
        answers = self.verifier.model().generate(prompts, max_new_tokens=settings.num_tokens)
        return [
            (torch.tensor([*prompt, *answer]), len(prompt))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _engine(
        self, drafter: Drafter[Any], content: Content, probes: Sequence[Probe]
    ) -> EngineAnswers | None:
        """Let a server decode the probes' prompts, and decode them here.

        Raises:
            LaunchError: no server, another model, or other requests at the same time.
        """
        settings, verifier = self._config.doctor, self.verifier
        if settings.endpoint is None:
            return None
        decoding = EvaluationConfig(
            num_prompts=None, max_new_tokens=settings.max_new_tokens, compare=False
        )
        prompts = [
            Prompt(
                (verifier.tokenizer.decode(p.prompt),), str(i), source="probe", input_ids=p.prompt
            )
            for i, p in enumerate(probes)
        ]
        try:
            answers = evaluate_served(
                settings.endpoint,
                expected_server(self._asked, content.config, verifier.spec),
                *(verifier.tokenizer, prompts, decoding),
                seed=self._config.seed,
                console=self._console,
            )
        except LaunchError as error:
            raise LaunchError(
                str(error).replace("evaluation.endpoint", "doctor.endpoint")
            ) from None

        def decoded() -> EvaluationResult:
            return evaluate(
                *(verifier.model(), drafter, verifier.tokenizer, prompts, decoding),
                seed=self._config.seed,
                console=self._console,
            )

        here = decoded()
        served = answers.result(here, verifier.model())
        name = str(served.settings["engine"])
        return EngineAnswers(name, served, here, lambda: decoded().acceptance)
