"""`speculators convert`: a checkpoint in another layout, or on the Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from speculators.algorithms.layouts import Wishes
from speculators.config.schema import Config
from speculators.config.wording import argument
from speculators.console import open_console
from speculators.conversion.card import CARD_FILE, Facts, model_card
from speculators.conversion.convert import (
    OURS,
    Body,
    TargetModel,
    choose_target,
    read_body,
    recognise,
    write_body,
)
from speculators.conversion.folders import (
    MASK_FILE,
    Content,
    read_content,
    refuse_filled,
    write_content,
)
from speculators.conversion.hub_upload import check_repository, upload
from speculators.conversion.integrity import CONFIG_FILE, WEIGHTS_FILE
from speculators.doctor.certificate import PARITY_FILE, hashes
from speculators.errors import CheckpointError, ConfigError
from speculators.evaluation.report.run_files import RunFiles
from speculators.launch.evaluate import FROM_CHECKPOINT, with_verifier
from speculators.verifier.spec_reader import read_spec
from speculators.verifier.weights import read_tables


@dataclass(frozen=True)
class Plan:
    """What is to be done with a checkpoint.

    Attributes:
        content: what was read.
        source: its layout.
        to: the layout to write.
        output: the folder to write.
    """

    content: Content
    source: str
    to: str
    output: Path


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Convert `config.checkpoint`, write it to `config.output_dir`, and upload it if asked for.

    Raises:
        ConfigError: a layout or repository that cannot be, or no verifier named.
        CheckpointError: the checkpoint is damaged, unknown in part, cannot be expressed, or is
            to be uploaded although its `parity.json` says that something differs.
        LaunchError: the Hub refuses.
    """
    console = open_console()
    plan = _plan(config)
    console.print(f"recognised:  {plan.source} layout in {plan.content.folder}", soft_wrap=True)
    target = _target(config, plan)
    settings = config.convert
    wishes = Wishes(settings.target_layer_ids, settings.num_draft_tokens)
    body = read_body(plan.content, plan.source, target, wishes)
    written, tensors = write_body(body, plan.to, target, plan.content.folder)
    copies = _copies(plan)
    texts = {} if config.push_to_hub is None else {CARD_FILE: _card(config, plan, body)}
    write_content(plan.output, written, tensors, texts, copies)
    console.print(
        f"written:     {plan.to} layout, {len(tensors)} tensors, to {plan.output}",
        soft_wrap=True,
    )
    named = body.config["speculators_config"]["verifier"]["name_or_path"]
    if config.push_to_hub is not None and Path(named).is_absolute():
        console.print(
            f"note:        the verifier is named by a folder of this machine, {named}; give "
            "verifier=hf verifier.name_or_path=HUB_ID for others",
            soft_wrap=True,
        )
    result: dict[str, Any] = {"source": plan.source, "to": plan.to, "folder": str(plan.output)}
    if config.push_to_hub is not None:
        names = (CONFIG_FILE, WEIGHTS_FILE, *texts, *copies)
        result["commit"] = _push(config, plan, names, console)
    return result


def _plan(config: Config) -> Plan:
    """Settle everything that can be wrong before the verifier is read."""
    if config.push_to_hub is not None:
        check_repository(config.push_to_hub)
    output = Path(config.output_dir).expanduser()
    refuse_filled(output)
    content = read_content(Path(config.checkpoint or "").expanduser())
    if config.push_to_hub is not None:
        _refuse_unproven(config, content.folder)
    source = recognise(content)
    to = choose_target(source, config.convert.to)
    if source == to and config.push_to_hub is None:
        raise ConfigError(
            f"convert.to={config.convert.to or 'null'}: {content.folder} is in the {to} layout "
            "already; give another convert.to, or push_to_hub=OWNER/NAME"
        )
    if source == OURS and (config.convert.target_layer_ids or config.convert.num_draft_tokens):
        raise ConfigError(
            "convert.target_layer_ids, convert.num_draft_tokens: this checkpoint says both itself; "
            "leave them null"
        )
    return Plan(content, source, to, output)


def _target(config: Config, plan: Plan) -> TargetModel:
    if config.verifier.name_or_path == FROM_CHECKPOINT:
        if plan.source != OURS:
            raise ConfigError(
                f"verifier.name_or_path={FROM_CHECKPOINT}: the {plan.source} layout does not name "
                "its verifier; give verifier=hf verifier.name_or_path=DIR or a hub id"
            )
        config = with_verifier(config, None, plan.content.config)
    spec = read_spec(config.verifier)
    return TargetModel(spec, lambda: read_tables(spec))


def _copies(plan: Plan) -> dict[str, Path]:
    """Return what is served beside the weights.

    Raises:
        CheckpointError: a learned mask vector, which only this project's layout has.
    """
    mask = plan.content.folder / MASK_FILE
    if not mask.exists():
        return {}
    if plan.to != OURS:
        raise CheckpointError(f"{mask}: the {plan.to} layout has no place for a mask vector")
    return {MASK_FILE: mask}


def _card(config: Config, plan: Plan, body: Body) -> str:
    """Make the card from the checkpoint, and from the run it belongs to where there is one."""
    folder = plan.content.folder.resolve()
    run_folder = folder.parent.parent
    known = RunFiles.read(run_folder) if (run_folder / "resolved.yaml").is_file() else None
    facts = Facts(
        name=config.push_to_hub or plan.output.name,
        layout=plan.to,
        own_layout=plan.to == OURS,
        serving=body.config,
        run={} if known is None else known.config,
        data={} if known is None else known.data_report,
        evaluation={} if known is None else known.evaluation,
        parity=_certificate(folder),
    )
    return model_card(facts)


def _certificate(folder: Path) -> dict[str, Any]:
    """Return `parity.json` of a checkpoint, empty where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    path = folder / PARITY_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); delete it") from error
    return found if isinstance(found, dict) else {}


def _refuse_unproven(config: Config, folder: Path) -> None:
    """Hold that what is published is not known to draft wrongly.

    Raises:
        CheckpointError: the doctor found a difference, or examined other files.
    """
    found = _certificate(folder)
    if config.convert.allow_failed_parity or not found:
        return
    examined = f"speculators doctor {argument('checkpoint', str(folder))}"
    if found.get("passed") is False:
        what = found.get("first_failure") or "no stage passed"
        problem = f"says that the checkpoint is not served as it was trained: {what}"
        remedy = f"mend it and run `{examined}` again"
    elif any(hashes(folder).get(name) != value for name, value in found.get("files", {}).items()):
        problem = "is of other files than those of the checkpoint"
        remedy = f"run `{examined}`"
    else:
        return
    raise CheckpointError(
        f"push_to_hub={config.push_to_hub}: {folder / PARITY_FILE} {problem}; {remedy}, or upload "
        "it all the same: convert.allow_failed_parity=true"
    )


def _push(config: Config, plan: Plan, names: Sequence[str], console: Console) -> str | None:
    repository = config.push_to_hub or ""
    console.print(f"model card:  {plan.output / CARD_FILE}", soft_wrap=True)
    if config.dry_run:
        console.print(f"dry_run:     nothing was uploaded to {repository}", soft_wrap=True)
        return None
    address = upload(plan.output, names, repository, private=config.convert.private)
    console.print(f"uploaded:    {address}", soft_wrap=True)
    return address
