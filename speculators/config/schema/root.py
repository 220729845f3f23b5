"""The whole configuration: what every command composes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from speculators.config.schema.convert import ConvertConfig
from speculators.config.schema.data import DataConfig
from speculators.config.schema.doctor import DoctorConfig
from speculators.config.schema.evaluation import EvaluationConfig
from speculators.config.schema.expected import ExpectedConfig
from speculators.config.schema.extract import ExtractConfig
from speculators.config.schema.hidden_states import HiddenStatesConfig
from speculators.config.schema.optimization import OptimizerConfig, ScheduleConfig
from speculators.config.schema.plan import PlanConfig
from speculators.config.schema.problem import Problem, at_least
from speculators.config.schema.serve import ServeConfig
from speculators.config.schema.speculator import SpeculatorConfig
from speculators.config.schema.sweep import SweepConfig
from speculators.config.schema.tracker import TrackerConfig
from speculators.config.schema.training import LauncherConfig, TrainingConfig
from speculators.config.schema.verifier import VerifierConfig


class AttentionBackend(Enum):
    """Who computes draft attention. All backends read the same mask definition."""

    auto = "auto"
    flex = "flex"
    sdpa = "sdpa"


@dataclass
class Config:
    """One composed configuration; groups are merged in from `conf/`."""

    verifier: VerifierConfig = MISSING
    speculator: SpeculatorConfig = MISSING
    data: DataConfig = MISSING
    hidden_states: HiddenStatesConfig = MISSING
    launcher: LauncherConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    schedule: ScheduleConfig = MISSING
    training: TrainingConfig = MISSING
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    evaluation: EvaluationConfig = MISSING
    expected: ExpectedConfig | None = None
    """What a published run measured; printed beside what an evaluation finds."""
    serve: ServeConfig = field(default_factory=ServeConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    doctor: DoctorConfig = field(default_factory=DoctorConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    seed: int = 0
    """Everything random is drawn from generators named after this seed."""
    output_dir: str = MISSING
    """Run directory."""
    cache_dir: str = MISSING
    """Prepared data, shared by runs and addressed by content."""
    checkpoint: str | None = None
    """Checkpoint folder (evaluate, convert, doctor)."""
    run: str | None = None
    """Run directory (doctor)."""
    compare: list[str] | None = None
    """evaluate: results to compare instead of evaluating: `evaluation.json` files or folders that
    hold one; the first is the reference."""
    push_to_hub: str | None = None
    """convert: hub repository, OWNER/NAME, to upload the folder and its model card to."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:0, ..."""
    attention: AttentionBackend = AttentionBackend.auto
    """auto: flex on a GPU, sdpa on a CPU (FlexAttention has no CPU backward)."""
    num_threads: int | None = None
    """CPU threads; null leaves torch's choice."""
    show: int = 0
    """prepare: print a sample of this many conversations, supervised tokens coloured."""
    validate_only: bool = False
    """prepare: name every row that cannot be used, with file, line, reason and what becomes of it;
    write nothing."""
    dry_run: bool = False
    """serve: print the command that would be run, and stop. convert: write folder and model card,
    upload nothing."""

    @property
    def data_seed(self) -> int:
        """Seed of everything that is drawn while data are prepared."""
        return self.seed if self.data.seed is None else self.data.seed

    def problems(self) -> Iterator[Problem]:
        """Check what concerns several groups."""
        yield from at_least(self, "seed", 0)
        yield from at_least(self, "num_threads", 1)
        yield from at_least(self, "show", 0)
        if self.speculator.forecast_steps and self.launcher.starts_processes:
            yield Problem(
                "speculator.forecast_steps",
                self.speculator.forecast_steps,
                "short runs are made in one process: use launcher=single",
            )
        if self.compare is not None and len(self.compare) < 2:
            yield Problem("compare", self.compare, "needs two results or more: compare=[A,B]")
        rewriting = self.data.regenerate
        if rewriting.capture and not rewriting.enabled:
            yield Problem(
                "data.regenerate.capture",
                True,
                "stores the states of regenerated rows: give data.regenerate.enabled=true, or use "
                "`speculators extract` for rows as they are",
            )
        elif rewriting.capture and self.hidden_states.store_path is None:
            yield Problem(
                "data.regenerate.capture",
                True,
                "needs a folder: give hidden_states.store_path=DIR",
            )
