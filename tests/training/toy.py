"""A drafter of a few matrices, rows to train it on, and a whole run of it in milliseconds.

It draws from the seeded generators of its step, as real drafters do, and from the global random
states, as they should not: resume has to be exact all the same. (Not from Python's: the run-time
checks of annotations draw from that one too, as often as they please.)
"""

from __future__ import annotations

import dataclasses
import io
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from speculators.algorithms.base import Drafter, DraftSession, Output, Proposal, StepContext
from speculators.config.schema import (
    AdamWConfig,
    AttentionBackend,
    Config,
    DataConfig,
    EvaluationConfig,
    HiddenStatesConfig,
    HiddenStatesMode,
    LauncherConfig,
    OptimizerConfig,
    ScheduleConfig,
    ScheduleName,
    SpeculatorConfig,
    TrackerConfig,
    TrainingConfig,
    VerifierConfig,
)
from speculators.console import open_console
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.testing.toy_verifier import ToyVerifier, toy_spec
from speculators.training.trainer import Trainer
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.weights import VerifierTables

SPEC = toy_spec(num_layers=2, hidden_size=8, vocab_size=17)
TOY = ToyVerifier(SPEC)
TABLES = VerifierTables(TOY.embed_tokens, TOY.head.lm_head, TOY.head.norm_weight)
AUX = [0, 1]
K = 2
SEQUENCE = 24


@dataclass
class ToyConfig(SpeculatorConfig):
    name: str = "toy"
    num_layers: int = 1
    depth: int = K
    dropout: float = 0.1


class ToyDrafter(Drafter[ToyConfig]):
    """Token a+k from the states before a and the embedding of a, one matrix per k."""

    speculators_model_type: ClassVar[str] = "toy"
    lm_head: nn.Linear
    embed: Tensor

    def __init__(self, config: ToyConfig, spec: VerifierSpec, vocabulary: DraftVocabulary) -> None:
        super().__init__()
        self.config, self.spec, self.vocabulary = config, spec, vocabulary
        hidden = spec.hidden_size
        self.fc = nn.Linear(len(AUX) * hidden, hidden, bias=False)
        self.layers = nn.ModuleList(
            nn.Linear(hidden, hidden, bias=False) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(hidden, bias=False)
        self.lm_head = nn.Linear(hidden, len(vocabulary), bias=False).requires_grad_(False)

    @classmethod
    def resolve(
        cls, config: ToyConfig, spec: VerifierSpec, unused_token_ids: list[int]
    ) -> ToyConfig:
        return config

    @classmethod
    def build(
        cls,
        config: ToyConfig,
        spec: VerifierSpec,
        vocabulary: DraftVocabulary,
        *,
        embed_tokens: Tensor,
        lm_head: Tensor,
        generator: torch.Generator,
        attention: AttentionBackend = AttentionBackend.auto,
    ) -> ToyDrafter:
        drafter = cls(config, spec, vocabulary)
        with torch.no_grad():
            for parameter in drafter.trainable_parameters().values():
                if parameter.ndim == 2:
                    parameter.normal_(0, 0.2, generator=generator)
            drafter.lm_head.weight.copy_(lm_head[vocabulary.ids])
        drafter.register_buffer("embed", embed_tokens.clone(), persistent=False)
        return drafter

    @property
    def num_draft_tokens(self) -> int:
        return self.config.depth

    def _logits(self, batch: PackedBatch, starts: Tensor) -> Tensor:
        states = torch.where(
            (starts > 0)[:, None], batch.aux[starts - 1].flatten(1), torch.zeros(())
        )
        x = self.norm(self.fc(states) + self.embed[batch.input_ids[starts]])
        return self.lm_head(torch.stack([layer(x) for layer in self.layers], dim=1))

    def compute_loss(self, batch: PackedBatch, teacher: nn.Module, step: StepContext) -> Output:
        candidates = self.start_candidates(batch).nonzero().flatten()
        if len(candidates) == 0:
            zero = torch.stack([p.sum() for p in self.trainable_parameters().values()]).sum() * 0
            return Output(zero, zero.detach())
        kept = torch.rand(len(candidates), generator=step.generator("anchors")) < 0.7
        starts = candidates[kept] if kept.any() else candidates
        slots = starts[:, None] + torch.arange(1, self.config.depth + 1)
        inside = slots < len(batch.input_ids)
        slots = slots.clamp(max=len(batch.input_ids) - 1)
        valid = inside & (batch.document_ids[slots] == batch.document_ids[starts][:, None])
        labels = self.vocabulary.draft_ids()[batch.input_ids[slots]]
        valid &= labels >= 0
        noise = 1 + self.config.dropout * float(np.random.rand())
        logits = self._logits(batch, starts) * noise + 0.01 * torch.rand(1)
        losses = nn.functional.cross_entropy(logits[valid], labels[valid], reduction="none")
        right = (logits.argmax(-1) == labels) & valid
        return Output(
            losses.sum(),
            valid.sum().float(),
            {"accuracy": right.sum()},
            {"accuracy": valid.sum()},
        )

    def start_candidates(self, batch: PackedBatch) -> Tensor:
        same = batch.document_ids[1:] == batch.document_ids[:-1]
        both = batch.loss_mask[1:] & batch.loss_mask[:-1] & same
        return torch.cat([both, torch.zeros(1, dtype=torch.bool)])

    def draft(self, batch: PackedBatch, starts: Tensor) -> Tensor:
        with torch.no_grad():
            return self.vocabulary.ids[self._logits(batch, starts).argmax(-1)]

    def new_session(self) -> DraftSession:
        return ToySession(self)

    def serving_config(self) -> dict[str, Any]:
        return {
            "architectures": ["ToyDraftModel"],
            "speculators_model_type": "toy",
            "draft_vocab_size": len(self.vocabulary),
            "speculators_config": {
                "proposal_methods": [{"speculative_tokens": self.config.depth}],
                "verifier": {"name_or_path": self.spec.name_or_path},
            },
            "transformer_layer_config": {
                "hidden_size": self.spec.hidden_size,
                "vocab_size": self.spec.vocab_size,
            },
        }

    @classmethod
    def config_from_serving(cls, config: dict[str, Any]) -> ToyConfig:
        return ToyConfig(
            depth=config["speculators_config"]["proposal_methods"][0]["speculative_tokens"]
        )

    def saved_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = dict(self.trainable_parameters())
        if not self.vocabulary.is_full:
            tensors["lm_head.weight"] = self.lm_head.weight
            tensors |= {"d2t": self.vocabulary.d2t, "t2d": self.vocabulary.t2d}
        return tensors


class ToySession(DraftSession):
    def __init__(self, drafter: ToyDrafter) -> None:
        self._drafter = drafter

    def propose(
        self,
        states: Tensor,
        tokens: Tensor,
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        row = row_of(torch.cat([torch.zeros(1, dtype=torch.int64), tokens]))
        return Proposal(self._drafter.draft(row, torch.tensor([len(tokens)]))[0])


def toy_drafter(
    vocabulary: DraftVocabulary | None = None, seed: int = 3, depth: int = K
) -> ToyDrafter:
    return ToyDrafter.build(
        ToyConfig(depth=depth, target_layer_ids=list(AUX)),
        SPEC,
        vocabulary or DraftVocabulary.full(SPEC.vocab_size),
        embed_tokens=TABLES.embed_tokens,
        lm_head=TABLES.lm_head,
        generator=torch.Generator().manual_seed(seed),
    )


def row_of(tokens: Tensor, supervised_from: int = 3) -> PackedBatch:
    """One document and its states; the rest of the row is padding."""
    length = len(tokens)
    states = TOY.states(tokens.tolist(), [*AUX, SPEC.num_layers])
    padded = max(SEQUENCE, length)

    def padding(value: Tensor, fill: int) -> Tensor:
        out = torch.full((padded, *value.shape[1:]), fill, dtype=value.dtype)
        out[:length] = value
        return out

    return PackedBatch(
        padding(tokens, 0),
        padding(torch.arange(length) >= supervised_from, 0),
        padding(torch.zeros(length, dtype=torch.int64), -1),
        padding(torch.arange(length), 0),
        padding(states[:, :-1], 0),
        padding(states[:, -1], 0),
        sample_ids=(f"sample{int(tokens.sum())}",),
    )


def padding_row() -> PackedBatch:
    """A row without a token, for a rank that has none left."""
    row = row_of(torch.arange(SEQUENCE) % SPEC.vocab_size)
    nobody = torch.full_like(row.document_ids, -1)
    return dataclasses.replace(
        row, document_ids=nobody, loss_mask=torch.zeros_like(row.loss_mask), sample_ids=()
    )


@dataclass
class ToyRows:
    """Rows drawn anew per epoch, a function of (seed, epoch, row)."""

    num_rows: int = 5
    seed: int = 0
    poison: Callable[[int, int], bool] = lambda epoch, row: False
    taken: list[tuple[int, int]] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        return f"toy-{self.num_rows}-{self.seed}"

    def rows_in_epoch(self, epoch: int) -> int:
        return self.num_rows

    def iterate(
        self, epoch: int, first_row: int, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[PackedBatch]:
        for first in range(first_row, self.num_rows, world_size):
            if (number := first + rank) < self.num_rows:
                self.taken.append((epoch, number))
                yield self.row(epoch, number)
            else:
                yield padding_row()

    def gauges(self) -> dict[str, float]:
        return {}

    def advice(self) -> str:
        return "there is nothing to change"

    def awaited(self) -> list[str]:
        return []

    def row(self, epoch: int, number: int) -> PackedBatch:
        source = torch.Generator().manual_seed(1000 * epoch + number + 7919 * self.seed)
        length = int(torch.randint(12, SEQUENCE, (1,), generator=source))
        start = int(torch.randint(SPEC.vocab_size, (1,), generator=source))
        row = row_of((start + 3 * torch.arange(length)) % SPEC.vocab_size)
        if self.poison(epoch, number):
            row.aux[5:] = float("nan")
        return row


def toy_config(
    run_dir: Path, *, optimizer: OptimizerConfig | None = None, **training: Any
) -> Config:
    """A whole configuration; keyword arguments go to `training`."""
    settings: dict[str, Any] = {
        "sequence_length": SEQUENCE,
        "epochs": 2,
        "log_every_steps": 2,
        "keep_last": None,
    }
    return Config(
        verifier=VerifierConfig(name="toy", name_or_path="toy"),
        speculator=ToyConfig(),
        data=DataConfig(name="toy", path="toy.jsonl"),
        hidden_states=HiddenStatesConfig(name="embedded", mode=HiddenStatesMode.embedded),
        launcher=LauncherConfig(name="single"),
        optimizer=optimizer or AdamWConfig(lr=0.01),
        schedule=ScheduleConfig(name=ScheduleName.cosine, warmup_fraction=0.2),
        training=TrainingConfig(**(settings | training)),
        tracker=TrackerConfig(),
        evaluation=EvaluationConfig(),
        seed=5,
        output_dir=str(run_dir),
        cache_dir=str(run_dir / "cache"),
    )


def validate_toy(drafter: Drafter[Any]) -> Mapping[str, Any]:
    """Share of right first tokens on two held-out rows; wastes random numbers on the way."""
    random.random()
    np.random.rand()
    torch.rand(3)
    rows = ToyRows(seed=99)
    right, total, loss = 0, 0, 0.0
    for number in range(2):
        row = rows.row(0, number)
        starts = drafter.start_candidates(row).nonzero().flatten()
        drafted = drafter.draft(row, starts)[:, 0]
        right += int((drafted == row.input_ids[starts + 1]).sum())
        total += len(starts)
        loss += float(drafter.compute_loss(row, TOY.head, StepContext(0, number)).loss_sum)
    return {"acceptance_length": 1 + right / total, "loss": loss / total}


def seed_everything(seed: int = 0) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def toy_trainer(
    run_dir: Path,
    config: Config | None = None,
    *,
    drafter: ToyDrafter | None = None,
    rows: ToyRows | None = None,
    **arguments: Any,
) -> Trainer:
    """A trainer from fresh weights and fresh random states, as a new process has them."""
    seed_everything()
    settings: dict[str, Any] = {
        "validate": validate_toy,
        "device": torch.device("cpu"),
        "console": open_console(file=io.StringIO(), width=200),
    }
    return Trainer(
        config or toy_config(run_dir),
        drafter or toy_drafter(),
        TOY.head,
        rows or ToyRows(),
        run_dir=run_dir,
        **(settings | arguments),
    )
