"""`speculators plan`: what a run needs, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from speculators.config.schema import Config
from speculators.console import open_console
from speculators.errors import ConfigError
from speculators.launch.result import write_json
from speculators.launch.threads import limit_threads
from speculators.launch.verifier_stage import choose_device
from speculators.plan.estimate import estimate, largest
from speculators.plan.measure import measure
from speculators.plan.report import lines, memory_table, to_dict
from speculators.plan.subject import Subject, find_data, find_spec
from speculators.training.devices import DEVICES, describe_device

LIMITS = ("speculator.max_anchors", "training.sequence_length")


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Print the plan, write `plan.json` into the run directory and return its content.

    Raises:
        ConfigError: sizes cannot be had, or steps are to be measured for another device.
        LaunchError: there is not memory enough to measure.
    """
    limit_threads(config)
    wanted = config.plan.device
    here = choose_device("cpu" if wanted == "cpu" else config.device)
    device = DEVICES[wanted] if wanted in DEVICES else describe_device(here)
    if config.plan.measure and wanted in DEVICES and wanted not in _name_of(here):
        raise ConfigError(
            f"plan.device={wanted}: is not the device of this machine ({here}), and "
            "plan.measure=true measures here: leave one of the two out"
        )
    assumptions: list[str] = []
    spec = find_spec(config, assumptions)
    subject = Subject(config, spec, device, find_data(config, spec, assumptions), assumptions)
    plan = estimate(subject)
    limits = {key: largest(subject, key) for key in LIMITS}
    measured = measure(subject, plan, here) if config.plan.measure else None
    console = open_console()
    console.print(memory_table(subject, plan))
    for line in lines(subject, plan, limits, measured):
        console.print(line, soft_wrap=True)
    found = to_dict(subject, plan, limits, measured)
    path = Path(config.output_dir) / "plan.json"
    write_json(path, found)
    console.print(f"plan: {path}", soft_wrap=True)
    return found


def _name_of(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    return torch.cuda.get_device_name(device).lower().replace(" ", "")
