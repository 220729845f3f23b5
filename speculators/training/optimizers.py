"""AdamW and Muon over named parameters, and their state by name.

Weight decay is decoupled and falls on matrices only. Learning rates are set before every step
from the schedule; the peak stands in each group as `peak_lr`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from speculators.config.schema import AdamWConfig, MuonConfig, OptimizerConfig
from speculators.errors import CheckpointError, ConfigError
from speculators.training.spread import Spread

_TABLES = ("embed_tokens", "lm_head")
Named = list[tuple[str, nn.Parameter]]


def build_optimizers(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig
) -> list[Optimizer]:
    """Return the optimizers that together move every one of `parameters`.

    Muon (`torch.optim.Muon`, torch 2.9 or newer) takes the matrices except embedding and head
    tables, with updates scaled to AdamW's size (0.2 * sqrt(max(rows, columns)), arXiv:2502.16982),
    so that `optimizer.lr` has the same meaning for both. AdamW takes the rest.

    Args:
        parameters: fp32 master weights by name, on their device.
        config: `AdamWConfig` or `MuonConfig`.

    Raises:
        ConfigError: no parameter to train, or an optimizer nobody knows.
    """
    if not parameters:
        raise ConfigError("speculator: has no trainable parameter")
    named = list(parameters.items())
    match config:
        case AdamWConfig():
            return [_adamw(named, config, config.lr)]
        case MuonConfig():
            matrices = [(name, p) for name, p in named if _takes_muon(name, p)]
            rest = [(name, p) for name, p in named if not _takes_muon(name, p)]
            both: list[Optimizer] = []
            if matrices:
                both.append(_muon(matrices, config))
            if rest:
                both.append(_adamw(rest, config, config.adamw_lr))
            return both
    raise ConfigError(f"optimizer.name={config.name}: allowed: adamw, muon")


def state_bytes(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> int:
    """Return the bytes of what `build_optimizers` remembers once every weight has moved.

    AdamW: two moments and a counter per tensor; Muon: one momentum. All of them fp32.

    Args:
        parameters: may lie on the meta device.
        config: `AdamWConfig` or `MuonConfig`.
    """
    total = 0
    for name, parameter in parameters.items():
        by_muon = isinstance(config, MuonConfig) and _takes_muon(name, parameter)
        total += 4 * parameter.numel() if by_muon else 8 * parameter.numel() + 4
    return total


def set_learning_rate(optimizers: Sequence[Optimizer], factor: float) -> float:
    """Set every group to its peak times `factor`; return the first group's learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
    return float(optimizers[0].param_groups[0]["lr"])


def step_if(optimizer: Optimizer, usable: Bool[Tensor, ""]) -> None:
    """Move the weights where `usable` is true; otherwise weights and moments stay as they are.

    Fused optimizers decide on the device (as for loss scaling); the others wait for the answer.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~usable).to(torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
    elif bool(usable):
        optimizer.step()


def optimizer_states(optimizers: Sequence[Optimizer]) -> list[dict[str, Any]]:
    """Return the state of each optimizer, parameters identified by name in its groups.

    Its tensors are the optimizer's own, spread as the weights are.
    """
    return [optimizer.state_dict() for optimizer in optimizers]


def load_optimizer_states(
    optimizers: Sequence[Optimizer], states: Sequence[dict[str, Any]], spread: Spread
) -> None:
    """Restore moments and counters; hyper-parameters stay those of the present configuration.

    Args:
        optimizers: of this run.
        states: from `optimizer_states`, by however many processes.
        spread: of this run.

    Raises:
        CheckpointError: the states belong to other optimizers or other parameters.
    """
    names, saved = [_names(o.state_dict()) for o in optimizers], [_names(s) for s in states]
    if names != saved:
        raise CheckpointError(
            "optimizer_state_dict.pt: made for other parameters: "
            f"saved {_shape(saved)}, now {_shape(names)}"
        )
    for optimizer, state in zip(optimizers, states, strict=True):
        settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        optimizer.load_state_dict({**state, "state": _placed(optimizer, state["state"], spread)})
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values)


def _placed(
    optimizer: Optimizer, saved: Mapping[int, Mapping[str, Any]], spread: Spread
) -> dict[int, dict[str, Any]]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        number: {
            key: spread.place(value, parameters[number]) if isinstance(value, Tensor) else value
            for key, value in of.items()
        }
        for number, of in saved.items()
    }


def _adamw(named: Named, config: AdamWConfig | MuonConfig, lr: float) -> Optimizer:
    groups = [
        {"params": [n for n in named if n[1].ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [n for n in named if n[1].ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    settings = {"lr": lr, "betas": (config.beta1, config.beta2), "eps": config.eps}
    try:
        optimizer = AdamW(groups, **settings, fused=True)
    except RuntimeError:  # not on this device
        optimizer = AdamW(groups, **settings)
    return _with_peak(optimizer, lr)


def _muon(matrices: Named, config: MuonConfig) -> Optimizer:
    optimizer = Muon(
        [{"params": matrices}],
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return _with_peak(optimizer, config.lr)


def _with_peak(optimizer: Optimizer, lr: float) -> Optimizer:
    for group in optimizer.param_groups:
        group["peak_lr"] = lr
    return optimizer


def _takes_muon(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and not any(table in name.split(".") for table in _TABLES)


def _names(state: Mapping[str, Any]) -> list[list[str]]:
    return [list(group.get("param_names", [])) for group in state["param_groups"]]


def _shape(names: list[list[list[str]]]) -> str:
    return f"{len(names)} optimizers over {sum(len(g) for o in names for g in o)} tensors"
