"""Memory of head and loss against the number of supervised slots, at a vocabulary of 151,936.

    python benchmarks/loss_memory.py [--slots 64 256 1024] [--json FILE]

Every case runs in a process of its own, forward and backward in fp32 on one thread. `live` is the
peak of all tensors the loss makes, slot-sized ones included; `resident` is the growth of the
process's peak resident memory, which also has what kernels allocate for themselves.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speculators.modules.chunked_head import Teacher, chunked_head_loss
from speculators.training.live_bytes import LiveBytes

VOCAB, HIDDEN = 151_936, 256
LOSSES = ("ce", "kl", "tv")


def plain_loss(hidden: Tensor, head: Tensor, labels: Tensor, states: Tensor, name: str) -> Tensor:
    """Return the loss with all logits at once."""
    log_q = (hidden @ head.T).log_softmax(-1)
    if name == "ce":
        return torch.nn.functional.nll_loss(log_q, labels, reduction="none")
    log_p = (states @ head.T).log_softmax(-1)
    if name == "kl":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    return 1 - torch.minimum(log_p.exp(), log_q.exp()).sum(-1)


def measure(version: str, name: str, slots: int) -> dict[str, Any]:
    """Run one case in this process."""
    torch.set_num_threads(1)
    g = torch.Generator().manual_seed(0)
    head = torch.randn(VOCAB, HIDDEN, generator=g) * 0.05
    hidden, states = (torch.randn(slots, HIDDEN, generator=g) for _ in range(2))
    hidden.requires_grad_()
    labels = torch.randint(0, VOCAB, (slots,), generator=g)
    teacher = Teacher(states, head, torch.arange(slots))
    _loss(version, name, hidden[:32], head, labels[:32], states[:32], teacher).sum().backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    with LiveBytes() as live:
        loss = _loss(version, name, hidden, head, labels, states, teacher).sum()
        loss.backward()
    return {
        "version": version,
        "loss": name,
        "slots": slots,
        "value": float(loss.detach()),
        "live_bytes": live.peak,
        "largest_tensor_bytes": live.largest,
        "resident_bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before),
        "seconds": time.perf_counter() - begin,
    }


def _loss(
    version: str, name: str, hidden: Tensor, head: Tensor, labels: Tensor, states: Tensor,
    teacher: Teacher,
) -> Tensor:  # fmt: skip
    if version == "plain":
        return plain_loss(hidden, head, labels, states, name)
    part = Teacher(states, head, teacher.index[: len(hidden)])
    return chunked_head_loss(hidden, head, {name: 1.0}, labels=labels, teacher=part).loss


def main() -> None:
    """Run every case and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        version, name, slots = options.case
        print(json.dumps(measure(version, name, int(slots))))
        return
    cases = []
    print(f"{'loss':5}{'slots':>7}{'':>4}{'version':9}{'live MiB':>10}{'resident':>10}{'s':>7}")
    for name in LOSSES:
        for slots in options.slots:
            for version in ("plain", "chunked"):
                command = [sys.executable, __file__, "--case", version, name, str(slots)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                case = json.loads(done.stdout)
                cases.append(case)
                print(
                    f"{name:5}{slots:7}{'':4}{version:9}{case['live_bytes'] / 2**20:10.1f}"
                    f"{case['resident_bytes'] / 2**20:10.1f}{case['seconds']:7.2f}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(cases, indent=2) + "\n")


if __name__ == "__main__":
    main()
