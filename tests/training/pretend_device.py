"""An accelerator that is not there: computes on the CPU and notes whatever the host waits for.

Its tensors live on a device of their own, so code takes the paths of accelerators, and an operation
on tensors of two devices fails as it would there. Registering a device is for a whole process, and
for its life: use it in a process of its own.
"""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

aten: Any = torch.ops.aten
NAME = "pretend"
DEVICE_NAME = f"{NAME}:0"

_ANSWERS = {  # what cannot be known before the device is done
    aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default,
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
    aten.unique_consecutive.default, aten.unique_dim.default, aten.bincount.default,
}  # fmt: skip
_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}


def available() -> bool:
    """Whether this torch lets Python be a device (2.10 and newer)."""
    return hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


def register() -> torch.device:
    """Make the device known to this process."""
    setup: Any = backend_registration._setup_privateuseone_for_python_backend
    dummy: Any = backend_registration._DummyBackendModule()
    dummy.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float32]
    setup(NAME, dummy)
    return torch.device(DEVICE_NAME)


class Here(Tensor):
    """A tensor on the device; its values lie on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> Here:
        return torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, device=torch.device(DEVICE_NAME),
        )  # type: ignore[return-value]  # fmt: skip

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __repr__(self, **_: Any) -> str:
        return f"Here({self.values})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, [])


class Pretending(TorchDispatchMode):
    """Lets tensors be made on the device while it is active.

    Args:
        waits: gets a line for every operation the host has to wait for.
    """

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self._waits)


def _run(func: Any, args: Any, kwargs: dict[str, Any], waits: list[str]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, Here)]
    there = [x for x in tensors if not isinstance(x, Here)]
    asked = kwargs.get("device")
    arrives = bool(here) if asked is None else torch.device(asked).type == NAME
    if func is aten.copy_.default:
        arrives = isinstance(args[0], Here)
    reason = _wait(func, args, kwargs, here, there, arrives)
    if reason is not None:
        waits.append(f"{reason}: {_caller()}")
    if here and func not in _COPIES | _INDEXING and any(x.ndim for x in there):
        raise RuntimeError(f"{func}: tensors of two devices")
    plain = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    plain_args, plain_kwargs = tree_map_only(Here, lambda x: x.values, (args, plain))
    if func is aten._to_copy.default and asked is not None:
        plain_kwargs["non_blocking"] = False
    out = func(*plain_args, **plain_kwargs)
    if not arrives:
        return out.clone() if func is aten._to_copy.default and out is args[0] else out
    out = tree_map_only(Tensor, lambda x: x if isinstance(x, Here) else Here(x), out)
    return return_and_correct_aliasing(func, args, kwargs, out) if here and asked is None else out


def _wait(
    func: Any, args: Any, kwargs: dict[str, Any], here: list[Any], there: list[Any], arrives: bool
) -> str | None:
    """Return why the host waits for this operation, or None."""
    if func in _ANSWERS:
        return str(func) if here else None
    if func in _COPIES:
        blocking = not kwargs.get("non_blocking", False)
        if func is aten.copy_.default:
            blocking = not (len(args) > 2 and args[2]) and blocking
        leaves, comes = bool(here) and not arrives, bool(there) and arrives
        return "copy to the host" if leaves else "blocking copy" if comes and blocking else None
    if func in _INDEXING and here:
        indices = [x for x in args[1] if x is not None]
        if any(x.dtype == torch.bool for x in indices):
            return "index with a mask"
        if any(not isinstance(x, Here) for x in indices):
            return "index that lies on the host"
    return None


def _caller() -> str:
    """Return the innermost line of the package."""
    frames = [f for f in traceback.extract_stack() if "/speculators/" in f.filename]
    return (
        f"{frames[-1].filename.rpartition('/speculators/')[2]}:{frames[-1].lineno}"
        if frames
        else "?"
    )
