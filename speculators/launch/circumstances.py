"""What has to stand beside every number of an evaluation, for others to get the same one."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from pathlib import Path

import torch

from speculators.config.schema import Config
from speculators.conversion.integrity import WEIGHTS_FILE
from speculators.evaluation.result import EvaluationResult
from speculators.launch.prompts_stage import ChosenPrompts
from speculators.launch.verifier_stage import Verifier


def under_circumstances(
    result: EvaluationResult,
    config: Config,
    checkpoint: Path,
    verifier: Verifier,
    chosen: ChosenPrompts,
) -> EvaluationResult:
    """Complete the settings of a result: drafter, verifier, template, prompts, hardware."""
    more = {
        **chosen.record(),
        "checkpoint": str(checkpoint.resolve()),
        "checkpoint_sha256": _hash(checkpoint / WEIGHTS_FILE),
        "verifier": verifier.spec.name_or_path,
        "verifier_revision": verifier.revision(),
        "verifier_dtype": config.verifier.dtype,
        "template": config.verifier.template,
        "template_arguments": dict(config.verifier.template_arguments),
    }
    if config.evaluation.endpoint is None:
        # What a server runs on, it does not say.
        more |= {"hardware": _hardware(verifier.device), "num_threads": torch.get_num_threads()}
    return dataclasses.replace(result, settings={**result.settings, **more})


def _hash(path: Path) -> str | None:
    """Return the first digits of a file's sha256; None where there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _hardware(device: torch.device) -> str:
    """Return the accelerator's name, or the processor's where there is none."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(errors="replace").splitlines() if cpus.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
