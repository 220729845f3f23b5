"""What is planned: drafter without weights, verifier's sizes, shape of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from speculators.algorithms.base import Drafter, StepContext
from speculators.algorithms.cost import Workload
from speculators.algorithms.registry import drafter_class
from speculators.config.schema import Config
from speculators.data.packing import pack
from speculators.data.prepared import PreparedData
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import ConfigError, SpeculatorsError
from speculators.launch.data_stage import prepare_data
from speculators.launch.verifier_stage import Verifier
from speculators.training.devices import Device
from speculators.training.schedule import count_steps
from speculators.training.step import uses_bfloat16
from speculators.verifier.sizes import spec_of_sizes
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.spec_reader import read_spec

_SAMPLES, _SAMPLE_TOKENS, _SUPERVISED = 5000, 735, 0.5


@dataclass(frozen=True)
class DataShape:
    """Size of the training data.

    Attributes:
        num_samples: training samples.
        num_tokens: of all of them.
        sample_tokens: mean.
        supervised_fraction: share of supervised tokens.
        num_validation_tokens: of the samples held out.
        prepared: the data themselves, where they were found.
    """

    num_samples: int
    num_tokens: int
    sample_tokens: float
    supervised_fraction: float
    num_validation_tokens: int
    prepared: PreparedData | None = None

    def rows_in_epoch(self, config: Config) -> Callable[[int], int]:
        """Return how many packed rows an epoch has, by its number."""
        length, data = config.training.sequence_length, self.prepared
        if data is None:
            return lambda epoch: max(1, -(-self.num_tokens // length))
        lengths = data.train.lengths
        return lambda epoch: len(pack(lengths, length, seed=config.seed, epoch=epoch))


@dataclass(frozen=True)
class Subject:
    """Everything an estimate is made from.

    Attributes:
        config: the configuration.
        spec: the verifier's sizes.
        device: where it will run.
        data: size of the data.
        assumptions: one line for each thing that was not known.
    """

    config: Config
    spec: VerifierSpec
    device: Device
    data: DataShape
    assumptions: list[str] = field(default_factory=list)

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        launcher = self.config.launcher
        return launcher.num_processes * launcher.num_nodes

    def drafter(self) -> Drafter[Any]:
        """Return the configured drafter on the meta device: all shapes, no memory.

        Raises:
            ConfigError: settings that cannot go with this verifier.
        """
        config, spec = self.config, self.spec
        algorithm = drafter_class(config.speculator.name)
        rows = list(range(spec.vocab_size - 1, -1, -1))
        settings = algorithm.resolve(config.speculator, spec, rows)
        size = settings.draft_vocab_size or spec.vocab_size
        vocabulary = DraftVocabulary(torch.arange(size), spec.vocab_size)
        table = torch.empty(spec.vocab_size, spec.hidden_size, device="meta", dtype=self.table_type)
        with torch.device("meta"):
            return algorithm.build(
                settings, spec, vocabulary, embed_tokens=table, lm_head=table,
                generator=StepContext(config.seed, step=0).generator("init"),
                attention=config.attention,
            )  # fmt: skip

    @property
    def table_type(self) -> torch.dtype:
        """Number format of the verifier's tables: fp32 on a CPU, elsewhere as stored."""
        return torch.float32 if self.device.type == "cpu" else getattr(torch, self.spec.dtype)

    @property
    def state_type(self) -> torch.dtype:
        """Number format of hidden states: that of the verifier."""
        dtype = self.config.verifier.dtype
        return getattr(torch, self.spec.dtype if dtype == "auto" else dtype)

    def workload(self) -> Workload:
        """Return a full row of this data."""
        training, accelerator = self.config.training, self.device.type != "cpu"
        length, data = training.sequence_length, self.data
        backend = self.config.attention.value
        return Workload(
            length,
            round(length * data.supervised_fraction),
            min(float(length), data.sample_tokens),
            bfloat16=uses_bfloat16(training.precision, torch.device(self.device.type)),
            fused_attention=backend == "flex" or (backend == "auto" and accelerator),
            accelerator=accelerator,
        )

    def num_steps(self) -> int:
        """Return the optimizer steps of the run."""
        rows = self.data.rows_in_epoch(self.config)
        return count_steps(rows, self.config.training, self.world_size)


def find_spec(config: Config, assumptions: list[str]) -> VerifierSpec:
    """Read the verifier's sizes: its own config.json, else those of the configuration.

    Raises:
        ConfigError: neither can be had.
    """
    try:
        return read_spec(config.verifier)
    except ConfigError as error:
        if config.verifier.sizes is None:
            raise ConfigError(
                f"{error}; or give its sizes (verifier.sizes, see conf/verifier/qwen3_8b.yaml)"
            ) from error
        assumptions.append(
            f"sizes of {config.verifier.name_or_path}: those of verifier.sizes, for its "
            "config.json cannot be had here"
        )
        return spec_of_sizes(config.verifier, config.verifier.sizes)


def find_data(config: Config, spec: VerifierSpec, assumptions: list[str]) -> DataShape:
    """Measure prepared data where there are any, and assume the rest, saying so."""
    asked, held_out = config.plan, config.training.validation_fraction
    prepared = _prepared(config) if spec.folder else None
    if prepared is not None and asked.num_samples is None and asked.sample_tokens is None:
        train = prepared.train
        tokens = int(train.lengths.sum())
        supervised = asked.supervised_fraction or int(train.num_supervised.sum()) / max(1, tokens)
        return DataShape(
            len(train), tokens, tokens / max(1, len(train)), supervised,
            int(prepared.validation.lengths.sum()), prepared,
        )  # fmt: skip
    limit = config.data.max_samples
    samples = asked.num_samples or round((limit or _SAMPLES) * (1 - held_out))
    mean = min(asked.sample_tokens or _SAMPLE_TOKENS, config.training.sequence_length)
    supervised = asked.supervised_fraction or _SUPERVISED
    assumptions.append(
        f"data (not prepared here): {samples:,} training samples of {mean:,} tokens, "
        f"{supervised:.0%} supervised (plan.num_samples, plan.sample_tokens, "
        "plan.supervised_fraction)"
    )
    validation = round(samples * held_out / (1 - held_out)) * mean
    return DataShape(samples, samples * mean, mean, supervised, validation)


def _prepared(config: Config) -> PreparedData | None:
    sources = [config.data, *config.data.sources.values()]
    if any(source.hub_id is not None for source in sources):
        return None  # nothing is downloaded for a plan
    try:
        quiet = replace(config, device="cpu")
        return prepare_data(quiet, Verifier(quiet), only_found=True)
    except SpeculatorsError:
        return None
