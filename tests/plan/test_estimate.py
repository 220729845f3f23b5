"""The plan of a run, against what a run of it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speculators.config.composition import compose
from speculators.errors import ConfigError
from speculators.plan.command import run
from speculators.plan.estimate import USABLE, estimate, largest, memory_by_part, total_bytes
from speculators.plan.measure import measure
from speculators.plan.subject import DataShape, Subject, find_spec
from speculators.training.devices import DEVICES, Device
from speculators.training.optimizers import build_optimizers, state_bytes

SMALL = Device("small", "cpu", 60 * 2**20, 1e9, "test")
DATA = DataShape(100, 20_000, 200.0, 0.5, 2_000)


def subject(*overrides: str, device: Device = SMALL) -> Subject:
    config = compose("plan", ["training.sequence_length=512", *overrides])
    notes: list[str] = []
    return Subject(config, find_spec(config, notes), device, DATA, notes)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["dflash", "eagle3", "peagle", "dspark"])
def test_weights_gradients_and_optimizer_state_are_exact(name: str, optimizer: str) -> None:
    planned = subject(
        f"speculator={name}", f"optimizer={optimizer}", "verifier.draft_vocab_size=256"
    )
    drafter = planned.drafter().to_empty(device="cpu")
    parameters = drafter.trainable_parameters()
    for parameter in parameters.values():
        parameter.data.fill_(0.1)
        parameter.grad = torch.ones_like(parameter)
    optimizers = build_optimizers(parameters, planned.config.optimizer)
    for one in optimizers:
        one.step()
    held = [
        value
        for one in optimizers
        for state in one.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    memory = estimate(planned).memory
    weights = sum(p.nbytes for p in parameters.values())
    assert memory["drafter weights (fp32)"] == memory["gradients"] == weights
    assert memory[f"optimizer state ({optimizer})"] == sum(v.nbytes for v in held)
    assert state_bytes(parameters, planned.config.optimizer) == sum(v.nbytes for v in held)


@pytest.mark.parametrize("name", ["dflash", "eagle3"])
def test_measured_steps_agree_within_ten_percent(name: str) -> None:
    planned = subject(
        f"speculator={name}",
        "training.sequence_length=1200",
        "plan.measure_steps=1",
        device=replace(SMALL, memory_bytes=2**32),
    )
    found = measure(planned, estimate(planned), torch.device("cpu"))
    assert found.step_bytes == pytest.approx(found.estimated_bytes, rel=0.1)
    assert found.step_seconds > 0


def test_what_fits_fits_and_one_more_does_not() -> None:
    planned = subject()
    length = largest(planned, "training.sequence_length")
    assert length

    def total(tokens: int) -> float:
        there = subject(f"training.sequence_length={tokens}")
        drafter = there.drafter()
        memory = memory_by_part(there, drafter, drafter.step_cost(there.workload()))
        return total_bytes(memory, accumulates=False)

    assert total(length) <= USABLE * SMALL.memory_bytes < total(length + 1)
    assert largest(subject("speculator=eagle3"), "speculator.max_anchors") is None


def test_shards_divide_what_is_divided() -> None:
    alone = estimate(subject()).memory
    spread = estimate(subject("launcher=fsdp", "launcher.num_processes=4")).memory
    for part in ("drafter weights (fp32)", "gradients", "optimizer state (adamw)"):
        assert spread[part] == alone[part] / 4


def test_disk_steps_and_time_follow_from_sizes() -> None:
    plan = estimate(subject("training.epochs=3", "plan.mfu=0.5"))
    assert plan.disk["bfloat16"] == 22_000 * 4 * 128 * 2
    assert plan.disk["float8_e4m3fn"] == 22_000 * 4 * (128 + 4)
    assert plan.num_steps in (600, 3 * 40)
    assert plan.step_seconds == pytest.approx((plan.cost.flops + plan.verifier_flops) / 0.5e9)


def test_a_verifier_out_of_reach_is_planned_by_its_sizes(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*args: object) -> object:
        raise ConfigError("verifier.name_or_path=Qwen/Qwen3-8B: the Hub cannot be reached")

    monkeypatch.setattr("speculators.plan.subject.read_spec", unreachable)
    config = compose("plan", ["verifier=qwen3_8b", "plan.device=h100", f"output_dir={tmp_path}"])
    found = run(config)
    # Five layers of Qwen3-8B's sizes and the fusion of three states, by hand.
    layer = 4096 * (2 * 4096 + 2 * 1024 + 3 * 12288 + 2) + 2 * 128
    assert found["trainable_parameters"] == 5 * layer + 3 * 4096**2 + 2 * 4096
    assert found["total_memory_bytes"] < USABLE * DEVICES["h100"].memory_bytes
    assert (tmp_path / "plan.json").is_file()
    assert "assumed: sizes of Qwen/Qwen3-8B" in capsys.readouterr().out
    config.verifier.sizes = None
    with pytest.raises(ConfigError, match="give its sizes"):
        run(config)


def test_measuring_for_another_device_is_refused() -> None:
    config = compose("plan", ["plan.device=h100", "plan.measure=true", "device=cpu"])
    with pytest.raises(ConfigError, match="is not the device of this machine"):
        run(config)
