"""Faults planted in a checkpoint or in training code, and the cause the doctor must name for each.

Each is planted in the place where it happens to people: in captured states, in the code of the
training pass, in `config.json`, in the tensors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from doctor.patient import (
    LAYERS,
    REDUCED,
    checkpoint,
    drafter,
    in_training,
    reread,
    verifier,
    with_states,
)
from speculators.algorithms.dflash import model as dflash_model
from speculators.algorithms.serving import TRAINING_KEY
from speculators.algorithms.slots import SlotPlan, plan_slots
from speculators.attention.layout import BlockLayout
from speculators.conversion.folders import read_content
from speculators.conversion.integrity import CONFIG_FILE, TOKENIZER_KEY, WEIGHTS_FILE
from speculators.data.template import VerifierTokenizer
from speculators.data.vocabulary import DraftVocabulary
from speculators.doctor import causes
from speculators.doctor.causes import Cause
from speculators.doctor.chain import examine
from speculators.doctor.finding import Finding, Verdict
from speculators.doctor.probe import CONVERSATION
from speculators.doctor.subject import Subject
from speculators.hidden_states.types import HiddenStates
from speculators.verifier.streams import OwnStreams
from speculators.verifier.tiny import folder as tiny_folder

Plant = Callable[[Path, pytest.MonkeyPatch], Subject]


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        text: what was planted.
        stage: where it must show first.
        cause: what it must be called.
        plant: makes the subject; patches code where that is the fault.
    """

    text: str
    stage: str
    cause: Cause
    plant: Plant

    @property
    def name(self) -> str:
        return self.plant.__name__

    def first_failure(self, folder: Path, patch: pytest.MonkeyPatch) -> Finding:
        findings = examine(self.plant(folder, patch))
        return next(finding for finding in findings if finding.verdict is Verdict.failed)


FAULTS: list[Fault] = []


def planted(text: str, stage: str, cause: Cause) -> Callable[[Plant], Plant]:
    def add(plant: Plant) -> Plant:
        FAULTS.append(Fault(text, stage, cause, plant))
        return plant

    return add


def captured(change: Callable[[HiddenStates, OwnStreams], tuple[Any, Any]]) -> Subject:
    return with_states(in_training(drafter("dflash")), change)


def edited(folder: Path, change: Callable[[dict[str, Any]], None], **changes: Any) -> Subject:
    """A checkpoint whose `config.json` was edited after training."""
    subject = checkpoint(drafter(changes.pop("name", "dflash"), **changes), folder)
    config = json.loads((folder / CONFIG_FILE).read_text())
    change(config)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    return reread(subject, read_content(folder))


def retensored(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Subject:
    """A checkpoint with a reduced vocabulary whose tensors were changed after training."""
    subject = checkpoint(drafter("dflash", REDUCED), folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)
    return reread(subject, read_content(folder))


# ---- states ---------------------------------------------------------------------------------


@planted("states of layers i + 1", "captured states", causes.WRONG_LAYER_IDS)
def wrong_layer_ids(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return captured(
        lambda states, own: (own.entering[[i + 1 for i in LAYERS]].transpose(0, 1), states.last)
    )


@planted("layers in descending order", "captured states", causes.SWAPPED_LAYERS)
def swapped_layers(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return captured(lambda states, own: (states.aux.flip(1), states.last))


@planted(
    "the model's last output as the teacher's state", "teacher logits", causes.NORMED_LAST_STATE
)
def normed_last_state(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return captured(lambda states, own: (states.aux, own.normed))


@planted("states one token late", "captured states", causes.FOREIGN_STATES)
def late_states(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return captured(lambda states, own: (states.aux.roll(1, 0), states.last))


@planted("all-zero states", "captured states", causes.FOREIGN_STATES)
def zero_states(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return captured(lambda states, own: (torch.zeros_like(states.aux), states.last))


@planted("a teacher of another final norm", "teacher logits", causes.WRONG_TEACHER)
def other_norm(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    subject = in_training(drafter("dflash"))
    subject.head.norm_weight = subject.head.norm_weight + 1  # as a norm that counts from 1
    return subject


@planted("states of layers i + 1, found later", "captured states", causes.WRONG_LAYER_IDS)
def recorded_wrong_layers(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    built = drafter("dflash")
    own = verifier().capture
    wrong = [i + 1 for i in LAYERS]
    with pytest.MonkeyPatch.context() as only_training:
        only_training.setattr(
            verifier(), "capture", lambda texts, ids, **options: own(texts, wrong, **options)
        )
        trained = checkpoint(built, folder)
    right = in_training(built)
    return dataclasses.replace(trained, probes=right.probes)


# ---- the training pass ----------------------------------------------------------------------


@planted("labels one token late", "training pass", causes.SHIFTED_LABELS)
def shifted_labels(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    def late(row: Any, layout: Any, draft_ids: Any, **options: Any) -> SlotPlan:
        plan = plan_slots(row, layout, draft_ids, **options)
        size = layout.block_size
        target = layout.anchors[plan.flat // size] + plan.flat % size + 1
        return dataclasses.replace(
            plan, labels=row.input_ids[target.clamp(max=len(row.input_ids) - 1)]
        )

    patch.setattr(dflash_model, "plan_slots", late)
    return in_training(drafter("dflash"))


@planted("slots that see the newest token's state", "training pass", causes.LEAKING_MASK)
def leaking_mask(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    bounds = BlockLayout.context_bounds

    def one_more(layout: BlockLayout, rule: Any) -> Any:
        first, end = bounds(layout, rule)
        return first, end + 1

    patch.setattr(BlockLayout, "context_bounds", one_more)
    return in_training(drafter("dflash"))


@planted("slots that copy the token they predict", "training pass", causes.LEAKING_MASK)
def copied_labels(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    built = drafter("dflash")
    train_slots = dflash_model.DFlashDrafter.train_slots

    def copying(self: Any, hidden: Any, batch: Any, teacher: Any, plan: Any, layout: Any) -> Any:
        rows = 100 * torch.nn.functional.normalize(self.lm_head.weight)[plan.labels]
        return train_slots(self, rows, batch, teacher, plan, layout)

    patch.setattr(dflash_model.DFlashDrafter, "train_slots", copying)
    return in_training(built)


@planted("other positions in the training pass", "training pass", causes.OTHER_FORWARD)
def other_positions(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    positions = BlockLayout.slot_positions
    patch.setattr(BlockLayout, "slot_positions", lambda layout: positions(layout) + 7)
    return in_training(drafter("dflash"))


@planted("whole rows drafted from one state less", "drafting", causes.OTHER_FORWARD)
def short_context(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return batched(patch, lambda first, end: (first, end - 1))


@planted("whole rows drafted with one state more", "drafting", causes.LEAKING_MASK)
def batched_leak(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return batched(patch, lambda first, end: (first, end + 1))


def batched(patch: pytest.MonkeyPatch, change: Callable[[Any, Any], Any]) -> Subject:
    """Other context where whole rows are drafted, and nowhere else."""
    draft, bounds = dflash_model.DFlashDrafter.draft, BlockLayout.context_bounds

    def drafting(self: Any, batch: Any, starts: Any) -> Any:
        with pytest.MonkeyPatch.context() as here:
            here.setattr(BlockLayout, "context_bounds", lambda *args: change(*bounds(*args)))
            return draft(self, batch, starts)

    patch.setattr(dflash_model.DFlashDrafter, "draft", drafting)
    return in_training(drafter("dflash"))


# ---- config.json ----------------------------------------------------------------------------


@planted("trained in both directions, served causal", "causality", causes.WRONG_CAUSALITY)
def served_causal(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return edited(folder, lambda config: config.update(sliding_window_non_causal=False))


@planted("trained causal, served in both directions", "causality", causes.WRONG_CAUSALITY)
def served_bidirectional(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return edited(
        folder,
        lambda config: config.update(sliding_window_non_causal=True),
        sliding_window=6,
        sliding_causal=True,
    )


@planted("another rope_theta in config.json", "rope", causes.WRONG_ROPE)
def wrong_theta(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    def edit(config: dict[str, Any]) -> None:
        config["transformer_layer_config"]["rope_parameters"]["rope_theta"] = 1_000_000.0

    return edited(folder, edit)


@planted("no rope_theta in config.json", "rope", causes.WRONG_ROPE)
def no_theta(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    def edit(config: dict[str, Any]) -> None:
        del config["transformer_layer_config"]["rope_parameters"]["rope_theta"]

    return edited(folder, edit)


@planted("layer ids less one in config.json", "layers read", causes.WRONG_LAYER_IDS)
def served_other_layers(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return edited(
        folder, lambda config: config.update(aux_hidden_state_layer_ids=[i - 1 for i in LAYERS])
    )


@planted("another mask_token_id in config.json", "mask token", causes.WRONG_MASK_TOKEN)
def other_mask(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return edited(folder, lambda config: config.update(mask_token_id=94))


@planted("a mask token that texts hold", "mask token", causes.WRONG_MASK_TOKEN)
def mask_in_texts(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    subject = in_training(drafter("dflash"))
    first = subject.probes[0]
    texts = first.input_ids.clone()
    texts[3] = subject.drafter.config.mask_token_id  # type: ignore[union-attr]
    return dataclasses.replace(subject, probes=[dataclasses.replace(first, input_ids=texts)])


@planted("no norm_before_residual in config.json", "settings", causes.OTHER_SETTINGS)
def silent_norm(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return edited(
        folder,
        lambda config: config.pop("norm_before_residual"),  # pyright: ignore[reportArgumentType]
        name="eagle3",
        norm_before_residual=False,
    )


@planted("no number of drafted tokens in config.json", "layers read", causes.WRONG_LAYER_IDS)
def no_proposal(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return edited(folder, lambda config: config["speculators_config"].pop("proposal_methods"))


@planted("settings changed while saving", "weights", causes.CHANGED_WEIGHTS)
def changed_settings(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    subject = in_training(drafter("dflash"), folder)
    assert subject.content is not None
    subject.content.config[TRAINING_KEY]["max_anchors"] = 3
    return subject


# ---- prompts and tokens ---------------------------------------------------------------------


@planted("trained on plain text, served with a template", "template", causes.WRONG_TEMPLATE)
def wrong_template(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    subject = checkpoint(drafter("dflash"), folder)
    plain = VerifierTokenizer.load(tiny_folder(), template="plain")
    assert subject.recorded is not None
    then = dataclasses.replace(subject.recorded, rendering=tuple(plain.prompt_ids(CONVERSATION)))
    return dataclasses.replace(subject, recorded=then)


@planted("another tokenizer.json", "tokenizer", causes.OTHER_TOKENIZER)
def other_tokenizer(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return edited(folder, lambda config: config.update({TOKENIZER_KEY: "0" * 64}))


@planted("another revision of the verifier", "verifier", causes.OTHER_VERIFIER)
def other_revision(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    subject = checkpoint(drafter("dflash"), folder)
    return dataclasses.replace(subject, revision=f"sha256:{'b' * 64}")


# ---- tensors --------------------------------------------------------------------------------


def _put_maps(tensors: dict[str, torch.Tensor], vocabulary: DraftVocabulary) -> None:
    tensors |= {"d2t": vocabulary.d2t, "t2d": vocabulary.t2d}


@planted("maps of another draft vocabulary", "vocabulary map", causes.STALE_VOCABULARY)
def stale_vocabulary_map(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    other = DraftVocabulary(REDUCED.ids + 1, REDUCED.vocab_size)
    return retensored(folder, lambda tensors: _put_maps(tensors, other))


@planted("d2t as ids, not as offsets", "vocabulary map", causes.STALE_VOCABULARY)
def ids_for_offsets(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return retensored(folder, lambda tensors: tensors.update(d2t=REDUCED.ids))


@planted("a head in another order than its map", "vocabulary map", causes.STALE_VOCABULARY)
def shuffled_head(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return retensored(
        folder,
        lambda tensors: tensors.update(
            {"lm_head.weight": tensors["lm_head.weight"].roll(1, 0).contiguous()}
        ),
    )


@planted("d2t without t2d", "vocabulary map", causes.STALE_VOCABULARY)
def one_map(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return retensored(folder, lambda tensors: tensors.pop("t2d"))  # pyright: ignore


@planted("t2d of a padded vocabulary", "vocabulary map", causes.STALE_VOCABULARY)
def padded_map(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return retensored(
        folder,
        lambda tensors: tensors.update(t2d=torch.cat([tensors["t2d"], tensors["t2d"][:32] * 0])),
    )


@planted("maps without a head", "vocabulary map", causes.STALE_VOCABULARY)
def no_head(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return retensored(folder, lambda tensors: tensors.pop("lm_head.weight"))  # pyright: ignore


@planted("a head with too few rows", "vocabulary map", causes.STALE_VOCABULARY)
def short_head(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return retensored(
        folder,
        lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"][1:].clone()}),
    )


@planted("a tensor lost while saving", "weights", causes.DAMAGED_CHECKPOINT)
def lost_while_saving(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    subject = in_training(drafter("dflash"), folder)
    assert subject.content is not None
    del subject.content.tensors["norm.weight"]
    return subject


@planted("a file without fc.weight", "weights", causes.DAMAGED_CHECKPOINT)
def missing_tensor(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    return retensored(folder, lambda tensors: tensors.pop("fc.weight"))  # pyright: ignore


@planted("weights changed after training", "recorded drafts", causes.CHANGED_WEIGHTS)
def changed_later(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    name = "layers.0.self_attn.v_proj.weight"
    return retensored(folder, lambda tensors: tensors.update({name: -tensors[name]}))


@planted("weights changed while saving", "weights", causes.CHANGED_WEIGHTS)
def changed_while_saving(folder: Path, patch: pytest.MonkeyPatch) -> Subject:
    subject = in_training(drafter("dflash"), folder)
    with torch.no_grad():
        subject.live.fc.weight[0, 0] += 1e-3  # type: ignore[union-attr, operator, index]
    return subject
