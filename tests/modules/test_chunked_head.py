from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modules.test_divergences import plain_terms
from speculators.modules import chunked_head, partition
from speculators.modules.chunked_head import Teacher, chunked_head_loss
from speculators.modules.partition import expectation, top_tokens

COMBINATIONS = [
    {"ce": 1.0},
    {"kl": 2.0},
    {"ce": 0.5, "kl": 1.5},
    {"reverse_kl": 1.0},
    {"js": 1.0},
    {"tv": 1.0},
    {"lk_alpha": 1.0},
    {"lk_hybrid": 1.0},
    {"ce": 0.3, "tv": 0.7},
    {"ce": 0.3, "kl": 0.7, "js": 2.0, "tv": 1.0, "reverse_kl": 0.1, "lk_alpha": 0.2},
]
SLOTS, HIDDEN, VOCAB, BASES = 75, 24, 1100, 31


@pytest.fixture(params=["small chunks", "large chunks"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd numbers of chunks over slots and vocabulary, or one chunk for all."""
    size = 0 if request.param == "small chunks" else 2**30
    monkeypatch.setitem(chunked_head._CHUNK_BYTES, "cpu", size)
    monkeypatch.setitem(partition._TILE_BYTES, "cpu", size)
    monkeypatch.setitem(partition._TILE_ROWS, "cpu", 32 if size == 0 else 512)


@pytest.fixture
def _small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunked_head._CHUNK_BYTES, "cpu", 0)
    monkeypatch.setitem(partition._TILE_BYTES, "cpu", 0)


def problem(
    dtype: torch.dtype, softcap: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Teacher]:
    """Return hidden, head, labels, targets and teacher; some labels and targets are missing."""
    g = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    hidden, head = normal(SLOTS, HIDDEN), normal(VOCAB, HIDDEN) * 0.5
    index = torch.randint(0, BASES, (SLOTS,), generator=g).sort().values
    index = index.unique_consecutive(return_inverse=True)[1]
    states = normal(int(index.max()) + 1, HIDDEN)
    labels = torch.randint(-1, VOCAB, (SLOTS,), generator=g)
    targets = (hidden @ head.T).argmax(-1)
    targets[::3], targets[1::3] = -1, (targets[1::3] + 1) % VOCAB
    teacher = Teacher(states, head + 0.2 * normal(VOCAB, HIDDEN), index, softcap)
    return hidden, head, labels, targets, teacher


def plain(
    hidden: Tensor, head: Tensor, weights: dict[str, float], labels: Tensor, teacher: Teacher
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same loss with all logits at once, for autograd."""
    y = teacher.states @ teacher.head.T
    if teacher.softcap is not None:
        y = teacher.softcap * torch.tanh(y / teacher.softcap)
    terms = plain_terms(hidden @ head.T, y[teacher.index], labels)
    loss = sum((w * terms[name] for name, w in weights.items()), torch.zeros(()))
    assert isinstance(loss, Tensor)
    return loss, {name: terms[name].detach() for name in weights}


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("weights", COMBINATIONS, ids=lambda w: "+".join(w))
def test_equals_plain_computation(
    weights: dict[str, float], trained: bool, softcap: float | None
) -> None:
    hidden, head, labels, targets, teacher = problem(torch.float64, softcap)
    hidden.requires_grad_()
    head.requires_grad_(trained)
    found = chunked_head_loss(
        hidden, head, weights, labels=labels, targets=targets, teacher=teacher
    )
    loss, terms = plain(hidden, head, weights, labels, teacher)
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.terms, terms)
    assert not any(term.requires_grad for term in found.terms.values())
    assert torch.equal(found.correct, targets == (hidden @ head.T).argmax(-1))
    incoming = torch.randn(SLOTS, dtype=torch.float64)
    inputs = (hidden, head) if trained else (hidden,)
    torch.testing.assert_close(
        torch.autograd.grad(found.loss, inputs, incoming),
        torch.autograd.grad(loss, inputs, incoming),
    )


@pytest.mark.parametrize("weights", COMBINATIONS, ids=lambda w: "+".join(w))
def test_fp32(weights: dict[str, float]) -> None:
    hidden, head, labels, _, teacher = problem(torch.float32)
    hidden.requires_grad_()
    found = chunked_head_loss(hidden, head, weights, labels=labels, teacher=teacher)
    loss, _ = plain(hidden, head, weights, labels, teacher)
    torch.testing.assert_close(found.loss, loss, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(found.loss.sum(), hidden), torch.autograd.grad(loss.sum(), hidden),
        atol=2e-5, rtol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("weights", COMBINATIONS, ids=lambda w: "+".join(w))
def test_bf16_autocast(weights: dict[str, float]) -> None:
    """Products in bf16, the rest in fp32: values and gradients within bf16's rounding."""
    hidden, head, labels, _, teacher = problem(torch.float32)
    hidden.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = chunked_head_loss(hidden, head, weights, labels=labels, teacher=teacher)
    assert found.loss.dtype is torch.float32
    wide = [t.bfloat16().double() for t in (hidden.detach(), head, teacher.states, teacher.head)]
    wide[0].requires_grad_()
    exact = replace(teacher, states=wide[2], head=wide[3])
    loss, _ = plain(wide[0], wide[1], weights, labels, exact)
    torch.testing.assert_close(found.loss.double(), loss, atol=0.06, rtol=0.03)
    (got,) = torch.autograd.grad(found.loss.sum(), hidden)
    (wanted,) = torch.autograd.grad(loss.sum(), wide[0])
    # tv jumps where q crosses p, so rounding decides a few entries
    assert (got.double() - wanted).norm() <= (0.1 if "tv" in weights else 0.03) * wanted.norm()


def test_without_gradients_none_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head, labels, _, teacher = problem(torch.float32)
    hidden.requires_grad_()
    products: list[tuple[int, ...]] = []
    original = partition.matmul_t
    monkeypatch.setattr(
        partition, "matmul_t", lambda a, b: (products.append(tuple(b.shape)), original(a, b))[1]
    )
    with torch.no_grad():
        found = chunked_head_loss(hidden, head, {"ce": 1.0}, labels=labels, teacher=teacher)
    assert not found.loss.requires_grad
    assert all(shape[1] == HIDDEN for shape in products)  # no product back to `hidden`


class LargestTensor(TorchDispatchMode):
    """Remembers the largest number of elements any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


@pytest.mark.usefixtures("_small_budgets")
@pytest.mark.parametrize("weights", COMBINATIONS, ids=lambda w: "+".join(w))
def test_logits_of_all_slots_never_exist(weights: dict[str, float]) -> None:
    """However many slots: no tensor is larger than one tile, or one chunk, of logits."""
    _, head, _, _, teacher = problem(torch.float32)
    for slots in (512, 2048):
        hidden = torch.randn(slots, HIDDEN, requires_grad=True)
        index = torch.arange(slots) * len(teacher.states) // slots
        labels = torch.randint(0, VOCAB, (slots,))
        with LargestTensor() as mode:
            part = replace(teacher, index=index)
            found = chunked_head_loss(hidden, head, weights, labels=labels, teacher=part)
            found.loss.sum().backward()
        assert mode.elements <= 512 * 256 < slots * VOCAB // 4


def test_no_slots_still_have_a_gradient() -> None:
    hidden, head, labels, _, teacher = problem(torch.float32)
    nothing = hidden[:0].clone().requires_grad_()
    empty = replace(teacher, states=teacher.states[:0], index=teacher.index[:0])
    for weights in COMBINATIONS:
        found = chunked_head_loss(nothing, head, weights, labels=labels[:0], teacher=empty)
        (grad,) = torch.autograd.grad(found.loss.sum(), nothing)
        assert grad.shape == (0, HIDDEN)


def test_a_comparison_needs_a_teacher() -> None:
    hidden, head, labels, _, _ = problem(torch.float32)
    with pytest.raises(ValueError, match="give a teacher"):
        chunked_head_loss(hidden, head, {"kl": 1.0}, labels=labels)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("vocab", [1, 50, 1100])
def test_top_tokens(vocab: int) -> None:
    hidden, head, *_ = problem(torch.float64)
    assert torch.equal(top_tokens(hidden, head[:vocab]), (hidden @ head[:vocab].T).argmax(-1))


def test_top_tokens_takes_the_first_of_equals() -> None:
    head = torch.zeros(700, 4)
    head[[300, 301, 640]] = 1.0
    assert top_tokens(torch.ones(3, 4), head).tolist() == [300] * 3
    assert top_tokens(torch.ones(0, 4), head).tolist() == []


@pytest.mark.usefixtures("_chunks")
def test_expectation() -> None:
    _, head, _, _, teacher = problem(torch.float64)
    found = expectation(teacher.states, teacher.head, head, 4.0)
    y = 4.0 * torch.tanh(teacher.states @ teacher.head.T / 4.0)
    p = y.softmax(-1)
    torch.testing.assert_close(found.mean, p @ head)
    torch.testing.assert_close(found.negative_entropy, (p * y.log_softmax(-1)).sum(-1))


@pytest.mark.parametrize("weights", [{"ce": 1.0}, {"ce": 1.0, "tv": 0.5}])
def test_of_equal_logits_only_the_one_that_would_be_drafted_is_right(
    weights: dict[str, float],
) -> None:
    g = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(5, 32, generator=g), torch.randn(70, 32, generator=g)
    hidden[:] = head[40] * 2
    head[66] = head[40]
    teacher = Teacher(hidden, head, torch.arange(5))
    for token, right in ((40, True), (66, False), (3, False), (-1, False)):
        labels = torch.full((5,), token)
        found = chunked_head_loss(hidden, head, weights, labels=labels, teacher=teacher)
        assert found.correct.tolist() == [right] * 5
    assert top_tokens(hidden, head).tolist() == [40] * 5
