"""Which commands there are.

A new one is an entry here, a primary config `conf/<name>.yaml` whose comment explains it, and a
module with `run(config: Config, argv: Sequence[str]) -> Mapping | float | None`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from speculators.config.schema import Config


@dataclass(frozen=True)
class Command:
    """One stage that can be started from the command line.

    Attributes:
        name: how it is called; also its primary config.
        module: imported only when the command really runs.
        summary: one line for the overview.
        keys: what people change most, for the help; dotted.
        spread_module: what runs in its place when `launcher` starts processes of their own.
        needs: keys without which it cannot run; of `a|b|c`, one is enough.
        passes_on: what stands after `--` goes to another program.
        decodes: at its end, where `evaluation` and the hidden states allow it.
    """

    name: str
    module: str
    summary: str
    keys: tuple[str, ...]
    spread_module: str | None = None
    needs: tuple[str, ...] = ()
    passes_on: bool = False
    decodes: bool = False

    def run(self, config: Config, argv: Sequence[str] = ()) -> Any:
        """Run the stage in this process, or spread as `config.launcher` says.

        Args:
            config: the whole configuration, valid.
            argv: command line, for the record.
        """
        spread = self.spread_module if config.launcher.starts_processes else None
        return importlib.import_module(spread or self.module).run(config, argv)


_SOURCE = "data.path|data.hub_id|data.sources"
_DATA = ("verifier.name_or_path", "verifier.template", "data.path", "data.max_samples")
_ROWS = ("training.sequence_length", "training.validation_fraction")
_DRAFTER = (
    "speculator.num_layers",
    "speculator.block_size",
    "speculator.max_anchors",
    "speculator.target_layer_ids",
    "speculator.draft_vocab_size",
    "speculator.mask_token_id",
    "speculator.loss_decay_gamma",
    "speculator.from_pretrained",
    "speculator.forecast_steps",
)
_LOOP = ("optimizer.lr", "training.max_steps", "training.epochs", "training.accumulation_steps")
_DECODING = (
    "evaluation.prompts",
    "evaluation.num_prompts",
    "evaluation.max_new_tokens",
    "evaluation.temperature",
)
_RUN = ("seed", "device", "num_threads", "output_dir", "cache_dir")
_SWEEP = ("sweep.objective",)
_MASKING = (
    "data.truncation",
    "data.multi_turn",
    "data.bad_rows",
    "data.duplicates",
    "data.prompt_sets",
    "data.num_workers",
    "speculator.draft_vocab_size",
    "validate_only",
    "show",
)
_REWRITING = (
    "data.regenerate.enabled",
    "data.regenerate.max_new_tokens",
    "data.regenerate.temperature",
    "data.regenerate.capture",
    "hidden_states.endpoints",
    "hidden_states.store_path",
)

_TRAIN = Command(
    "train",
    "speculators.launch.train",
    "everything that is still missing, then training, evaluation and a report",
    (*_DATA, *_ROWS, *_DRAFTER, "hidden_states.endpoints", *_LOOP, *_DECODING, *_RUN, *_SWEEP),
    spread_module="speculators.launch.processes",
    needs=(_SOURCE,),
    decodes=True,
)
_PREPARE = Command(
    "prepare",
    "speculators.launch.prepare",
    "conversations -> token ids, loss mask, token frequencies and a data report",
    (*_DATA, *_ROWS, *_MASKING, *_REWRITING, *_RUN),
    needs=(_SOURCE,),
)
_EVALUATE = Command(
    "evaluate",
    "speculators.launch.evaluate",
    "lossless speculative decoding with a drafter, against plain decoding",
    ("checkpoint", *_DECODING, "evaluation.sampling", "evaluation.endpoint", "compare", *_RUN),
    needs=("checkpoint|compare", f"evaluation.prompts|{_SOURCE}"),
)
_SERVER = (
    "serve.command",
    "serve.port",
    "serve.host",
    "serve.max_model_len",
    "hidden_states.fetch.transfer_path",
    "dry_run",
)
_SERVE = Command(
    "serve",
    "speculators.launch.serve",
    "starts vLLM for the verifier so that it hands over the hidden states that are trained on",
    ("verifier.name_or_path", "speculator.target_layer_ids", "training.sequence_length", *_SERVER),
    passes_on=True,
)
_STORE = ("hidden_states.store_path", "hidden_states.endpoints", "extract.rank")
_EXTRACT = Command(
    "extract",
    "speculators.launch.extract",
    "fills the store of hidden states ahead of training",
    (*_DATA, *_ROWS, "speculator.target_layer_ids", *_STORE, "extract.world_size", "cache_dir"),
    needs=(_SOURCE,),
)
_CONVERT = Command(
    "convert",
    "speculators.launch.convert",
    "a checkpoint in another writer's layout, both ways, or on the Hub with a model card",
    (
        "checkpoint",
        "convert.to",
        "convert.target_layer_ids",
        "convert.num_draft_tokens",
        "verifier.name_or_path",
        "output_dir",
        "push_to_hub",
        "convert.private",
        "dry_run",
    ),
    needs=("checkpoint",),
)

_PLAN = Command(
    "plan",
    "speculators.plan.command",
    "memory, disk and time before the start, from the configuration alone",
    (
        *("plan.device", "plan.measure", "plan.mfu", "plan.num_samples", "plan.sample_tokens"),
        *("plan.supervised_fraction", "verifier.name_or_path", "training.sequence_length"),
        *("training.epochs", "training.accumulation_steps", "launcher.num_processes"),
        *("speculator.num_layers", "speculator.block_size", "speculator.max_anchors"),
        *("hidden_states.store_dtype", "training.ema_decay"),
    ),
)

_DOCTOR = Command(
    "doctor",
    "speculators.doctor.command",
    "proves that training, checkpoint and engine compute the same; explains low acceptance",
    (
        *("checkpoint", "run", "doctor.endpoint", "doctor.tests", "doctor.num_samples"),
        *("doctor.num_prompts", "doctor.num_tokens"),
        *("doctor.max_new_tokens", "evaluation.prompts", "verifier.template", "device"),
    ),
    needs=("checkpoint|run",),
)

_LEADERBOARD = Command(
    "leaderboard",
    "speculators.sweep.command",
    "who leads in a sweep: runs grouped over seeds, as a table and a plot",
    ("sweep.dir", "sweep.objective"),
    needs=("sweep.dir",),
)

_ALL = (_TRAIN, _PREPARE, _PLAN, _SERVE, _EXTRACT, _EVALUATE, _DOCTOR, _CONVERT, _LEADERBOARD)
COMMANDS = {command.name: command for command in _ALL}
"""Every command by name, in the order of the help."""
