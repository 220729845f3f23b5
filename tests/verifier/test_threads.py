"""The loader's thread and the trainer's share one verifier: neither sees the other's streams."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch

from speculators.config.schema.verifier import VerifierConfig
from speculators.verifier.model import VerifierModel
from speculators.verifier.spec_reader import read_spec


def test_passes_of_two_threads_do_not_mix(save_model: Callable[..., Path]) -> None:
    spec = read_spec(VerifierConfig(name="test", name_or_path=str(save_model("qwen3"))))
    model = VerifierModel.load(spec)
    random = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 97, (n,), generator=random) for n in (40, 7)]
    expected = [model.capture([prompt], [0, 2])[0] for prompt in prompts]
    problems: list[str] = []

    def work(which: int) -> None:
        for _ in range(40):
            try:
                states = model.capture([prompts[which]], [0, 2])[0]
            except RuntimeError as error:
                problems.append(str(error))
                return
            if not torch.equal(states.aux, expected[which].aux):
                problems.append("other streams")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
