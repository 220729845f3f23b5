"""Real training runs of the tiny verifier, healthy ones and ones with a planted cause.

Each is a run as a user makes it, made short: data are prepared, the drafter is trained, decoded and
left in a run directory. Faults of code and states are planted while it trains and gone when the
doctor comes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speculators.algorithms.dflash import model as dflash_model
from speculators.algorithms.slots import SlotPlan, plan_slots
from speculators.attention.layout import BlockLayout
from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.conversion.integrity import CONFIG_FILE, WEIGHTS_FILE
from speculators.data.tiny import tiny_conversations, tiny_prompts
from speculators.data.types import Turn
from speculators.doctor import causes
from speculators.doctor.causes import Cause
from speculators.errors import CheckpointError
from speculators.hidden_states.embedded import EmbeddedSource
from speculators.hidden_states.types import HiddenStates
from speculators.launch import train
from speculators.launch.data_stage import prepare_data
from speculators.launch.verifier_stage import Verifier
from speculators.training import step as training_step
from speculators.verifier.model import VerifierModel

SHORT = (
    "data.max_samples=300",
    "data.regenerate.max_new_tokens=64",
    "training.sequence_length=256",
    "training.epochs=3",
    "training.max_steps=300",
    "training.validation_samples=16",
    "training.keep_last=2",
    "training.checkpoint_every_steps=250",
    "evaluation.num_prompts=8",
    "evaluation.max_new_tokens=64",
    "evaluation.compare=false",
)
UNGUARDED = ("doctor.at_start=false", "doctor.at_checkpoints=false")
"""The fault is there because nobody looked: what is left are the numbers of the run."""
UNTRAINED = ("training.max_steps=2", "evaluation.enabled=false", "training.validation_samples=2")


@dataclass(frozen=True)
class World:
    """Where runs lie, and what they share.

    Attributes:
        folder: of all runs, data and the cache.
    """

    folder: Path

    def config(self, name: str, overrides: Iterable[str], command: str = "train") -> Config:
        places = [f"output_dir={self.folder / name}", f"cache_dir={self.folder / 'cache'}"]
        return compose(command, [*places, *overrides])

    def written(self, name: str, rows: Iterable[dict[str, Any]]) -> Path:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: of its directory.
        text: what is special about it.
        cause: what the doctor must name first; None: the run is healthy.
        overrides: of the configuration.
        data: writes files the configuration needs, and returns more overrides.
        patch: of code, while training.
        edit: of the directory, afterwards.
        like: name of a run whose directory is copied in place of training.
    """

    name: str
    text: str
    cause: Cause | None = None
    overrides: tuple[str, ...] = ()
    data: Callable[[World], list[str]] = lambda world: []
    patch: Callable[[pytest.MonkeyPatch], None] = lambda patch: None
    edit: Callable[[Path], None] = lambda folder: None
    like: str = ""

    def make(self, world: World) -> Path:
        """Train, and return the run directory; one that is there already is used again."""
        folder = world.folder / self.name
        if folder.exists():
            return folder
        if self.like:
            shutil.copytree(RUNS[self.like].make(world), folder, symlinks=True)
        else:
            with pytest.MonkeyPatch.context() as patch:
                self.patch(patch)
                words = [*SHORT, *self.overrides, *self.data(world)]
                try:
                    train.run(world.config(self.name, words))
                except CheckpointError:
                    assert UNGUARDED[0] not in self.overrides
        self.edit(folder)
        return folder


RUNS: dict[str, Run] = {}


def add(name: str, text: str, cause: Cause | None = None, *overrides: str, **more: Any) -> None:
    RUNS[name] = Run(name, text, cause, overrides, **more)


# ---- healthy --------------------------------------------------------------------------------

add("dflash", "DFlash")
add("eagle3", "Eagle-3, another seed", None, "speculator=eagle3", "seed=1")
add("dspark", "DSpark, half the data", None, "speculator=dspark", "data.max_samples=150", "seed=2")
add("peagle", "P-EAGLE, twice the data", None, "speculator=peagle", "data.max_samples=600")
add("vocabulary", "DFlash, 640 draft tokens", None, "speculator.draft_vocab_size=640")
add(
    "sampled", "DFlash, answers sampled at temperature 1, bf16 weights saved", None,
    "data.regenerate.temperature=1", "training.checkpoint_dtype=bfloat16",
)  # fmt: skip

# ---- data -----------------------------------------------------------------------------------


def as_messages(turns: Iterable[Turn]) -> dict[str, Any]:
    return {"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}


def all_supervised(world: World) -> list[str]:
    """The verifier's own answers as token rows, whose mask leaves out only the first token.

    Where it leaves out nothing, preparing the data stops.
    """
    config = world.config("dflash", SHORT)
    data = prepare_data(config, Verifier(config))
    samples = [data.train[i] for i in range(len(data.train))]
    rows = [
        {
            "input_ids": sample.input_ids.tolist(),
            "loss_mask": [0, *[1] * (len(sample) - 1)],
        }
        for sample in samples
    ]
    return ["data=jsonl", f"data.path={world.written('all_supervised', rows)}"]


def of_other_people(world: World) -> list[str]:
    """Good English in the verifier's own words, but never what it would say to this question."""
    drawn = tiny_conversations(301)
    rows = []
    for one, other in itertools.pairwise(drawn):
        said = itertools.cycle(turn for turn in other.turns if turn.role == "assistant")
        rows.append(
            as_messages(next(said) if turn.role == "assistant" else turn for turn in one.turns)
        )
    return ["data=jsonl", f"data.path={world.written('other_people', rows)}"]


def one_kind(world: World) -> list[str]:
    """Training on sums alone, evaluation on sums and on poems."""
    rows, prompts = [], []
    for prompt in tiny_prompts(6000, seed=3):
        kind = "sums" if "add" in prompt.task or "subtract" in prompt.task else prompt.task
        if len(prompt.turns) == 1:
            prompts.append((kind, prompt.turns[0].content))
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "?"}]}
        for kind, text in prompts
        if kind == "sums"
    ]
    words = ["data=jsonl", f"data.path={world.written('one_kind', rows[24:])}"]
    asked = [{"prompt": rows[i]["messages"][0]["content"], "category": "sums"} for i in range(6)]
    others = [text for kind, text in prompts if kind in ("poem", "story")]
    asked += [{"prompt": text, "category": "poems"} for text in others[:6]]
    path = world.written("one_kind_prompts", asked)
    return [
        *words, "data.regenerate.enabled=true", f"evaluation.prompts={path}",
        "evaluation.num_prompts=null",
    ]  # fmt: skip


def babble(world: World) -> list[str]:
    """Prompts that make the verifier repeat itself."""
    rows = [{"prompt": "the " * number} for number in range(36, 48, 2)]
    return [f"evaluation.prompts={world.written('babble', rows)}", "evaluation.max_new_tokens=128"]


def long_prompts(world: World) -> list[str]:
    """Conversations of many turns."""
    turns = [prompt.turns for prompt in tiny_prompts(600, seed=5) if len(prompt.turns) > 4]
    rows = [{"turns": [turn.content for turn in one if turn.role == "user"]} for one in turns]
    return [f"evaluation.prompts={world.written('long', rows[:8])}"]


add("all_ones", "a loss mask of ones", causes.ALL_ONES_MASK, data=all_supervised)
add("off_policy", "answers to other questions", causes.OFF_POLICY, data=of_other_people)
add("one_kind", "one kind of conversation", causes.UNEVEN_SLICES, data=one_kind)
add("babble", "prompts of one word many times", causes.LOOPING_ANSWERS, data=babble)
add(
    "overfit", "20 conversations, 150 times", causes.OVERFIT,
    "data.max_samples=20", "training.epochs=1000",
)  # fmt: skip
add(
    "template", "trained on plain text", causes.WRONG_TEMPLATE,
    "verifier.template=plain", "data.regenerate.enabled=false", "training.max_steps=40",
)  # fmt: skip

# ---- settings -------------------------------------------------------------------------------

add("anchors", "two anchors a row", causes.TOO_FEW_ANCHORS, "speculator.max_anchors=2")
add("few_tokens", "64 draft tokens", causes.SMALL_VOCABULARY, "speculator.draft_vocab_size=64")
add(
    "positions", "one step trained, five tokens drafted", causes.UNTRAINED_POSITIONS,
    "speculator=eagle3", "speculator.ttt_steps=1", "speculator.num_draft_tokens=5",
)  # fmt: skip
add(
    "long", "rows of 64 tokens, decoding of five turns", causes.LONG_CONTEXTS,
    "training.sequence_length=64", "data.max_samples=600", "data.truncation=drop",
    "training.accumulation_steps=4", "speculator=eagle3",
    data=long_prompts,
)  # fmt: skip

# ---- optimizer ------------------------------------------------------------------------------


def rounded(patch: pytest.MonkeyPatch) -> None:
    """Weights that live in bf16: every step is rounded to their spacing."""
    own = training_step.step_if

    def step_if(optimizer: Any, usable: Any) -> None:
        own(optimizer, usable)
        for weight in itertools.chain(*(group["params"] for group in optimizer.param_groups)):
            weight.data.copy_(weight.data.to(torch.bfloat16))

    patch.setattr(training_step, "step_if", step_if)


def overflowing(patch: pytest.MonkeyPatch) -> None:
    """Every 20th row gives no finite loss."""
    own, calls = dflash_model.DFlashDrafter.compute_loss, itertools.count(1)

    def compute_loss(self: Any, *args: Any, **options: Any) -> Any:
        output = own(self, *args, **options)
        if self.training and next(calls) % 20 == 0:
            return dataclasses.replace(output, loss_sum=output.loss_sum * float("inf"))
        return output

    patch.setattr(dflash_model.DFlashDrafter, "compute_loss", compute_loss)


add(
    "bfloat16", "weights kept in bf16 at a small learning rate", causes.FROZEN_BFLOAT16,
    "optimizer.lr=3e-5", patch=rounded,
)  # fmt: skip
add("overflow", "every 20th loss infinite", causes.UNSTABLE, patch=overflowing)

# ---- code of the training pass --------------------------------------------------------------


def leaking(patch: pytest.MonkeyPatch) -> None:
    """Slots see the states of the tokens they predict."""
    bounds = BlockLayout.context_bounds

    def seeing(layout: BlockLayout, rule: Any) -> Any:
        first, end = bounds(layout, rule)
        return first, (end + 4).clamp(max=len(layout.document_ids))

    patch.setattr(BlockLayout, "context_bounds", seeing)


def late(patch: pytest.MonkeyPatch) -> None:
    """Slot k learns the token behind the one it is served for."""

    def planned(row: Any, layout: Any, draft_ids: Any, **options: Any) -> SlotPlan:
        plan = plan_slots(row, layout, draft_ids, **options)
        size = layout.block_size
        target = layout.anchors[plan.flat // size] + plan.flat % size + 1
        labels = row.input_ids[target.clamp(max=len(row.input_ids) - 1)]
        return dataclasses.replace(plan, labels=labels)

    patch.setattr(dflash_model, "plan_slots", planned)


add("leak", "slots that see what they predict", causes.LEAKING_MASK, *UNGUARDED, patch=leaking)
add("shifted", "labels one token late", causes.SHIFTED_LABELS, *UNGUARDED, patch=late)

# ---- states ---------------------------------------------------------------------------------


def capturing(
    change: Callable[[VerifierModel, list[int], HiddenStates, Any], HiddenStates],
) -> Callable[[pytest.MonkeyPatch], None]:
    """Training gets other states; decoding and the doctor get the verifier's own."""

    def planted(patch: pytest.MonkeyPatch) -> None:
        own, generate = VerifierModel.capture, EmbeddedSource._generate

        def captured(self: Any, texts: Any, layer_ids: Any, **options: Any) -> Any:
            states = own(self, texts, layer_ids, **options)
            again = lambda ids: own(self, texts, ids, **options)  # noqa: E731
            return [
                change(self, list(layer_ids), one, lambda ids, at=at: again(ids)[at])
                for at, one in enumerate(states)
            ]

        def generated(self: Any, samples: Any) -> Any:
            with pytest.MonkeyPatch.context() as only_here:
                only_here.setattr(VerifierModel, "capture", captured)
                return generate(self, samples)

        patch.setattr(EmbeddedSource, "_generate", generated)

    return planted


def higher(model: Any, ids: list[int], states: HiddenStates, again: Any) -> HiddenStates:
    return dataclasses.replace(states, aux=again([i + 1 for i in ids]).aux)


def descending(model: Any, ids: list[int], states: HiddenStates, again: Any) -> HiddenStates:
    return dataclasses.replace(states, aux=states.aux.flip(1))


def normed(model: Any, ids: list[int], states: HiddenStates, again: Any) -> HiddenStates:
    return dataclasses.replace(states, last=model._decoder.module.norm(states.last))


add(
    "layers", "states of layers i + 1", causes.WRONG_LAYER_IDS, *UNGUARDED,
    patch=capturing(higher),
)  # fmt: skip
add(
    "swapped", "layers in descending order", causes.SWAPPED_LAYERS, *UNGUARDED,
    patch=capturing(descending),
)  # fmt: skip

# ---- found before the first step ------------------------------------------------------------

add(
    "start_layers", "states of layers i + 1, a watched run", causes.WRONG_LAYER_IDS,
    patch=capturing(higher),
)  # fmt: skip
add("start_leak", "a leaking mask, a watched run", causes.LEAKING_MASK, patch=leaking)
add(
    "start_normed", "the last state after the final norm", causes.NORMED_LAST_STATE,
    patch=capturing(normed),
)  # fmt: skip

# ---- the checkpoint, afterwards -------------------------------------------------------------


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "checkpoints" / "checkpoint_best" / CONFIG_FILE
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return edit


def retensored(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "checkpoints" / "checkpoint_best" / WEIGHTS_FILE
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


def _other_theta(config: dict[str, Any]) -> None:
    config["transformer_layer_config"]["rope_parameters"]["rope_theta"] = 777.0


add(
    "theta", "another rope_theta in config.json", causes.WRONG_ROPE, like="dflash",
    edit=edited(_other_theta),
)  # fmt: skip
add(
    "causal", "served causal", causes.WRONG_CAUSALITY, like="dflash",
    edit=edited(lambda config: config.update(sliding_window_non_causal=False)),
)  # fmt: skip
add(
    "stale_map", "d2t of another vocabulary", causes.STALE_VOCABULARY, like="vocabulary",
    edit=retensored(lambda tensors: tensors.update(d2t=tensors["d2t"] + 1)),
)  # fmt: skip

HEALTHY = [run for run in RUNS.values() if run.cause is None]
PLANTED = [run for run in RUNS.values() if run.cause is not None]
