"""The token loss against the plain one: values, gradients, gradients of gradients, and the memory that it saves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.token_loss import chunked_cross_entropy, linear_cross_entropy, plain_token_loss

ROWS, WIDTH, VOCABULARY = 600, 8, 50


def operands(dtype: torch.dtype = torch.float64, rows: int = ROWS) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(rows, WIDTH, generator=generator, dtype=dtype) * 3
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype)
    bias = torch.randn(VOCABULARY, generator=generator, dtype=dtype)
    targets = torch.randint(0, VOCABULARY, (rows,), generator=generator)
    return states.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), targets


def plain(states, weight, bias, targets, softcap=None) -> torch.Tensor:
    logits = F.linear(states, weight, bias)
    logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
    return F.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("torchs", [True, False])
@pytest.mark.filterwarnings("error")
def test_equals_the_plain_loss(torchs: bool, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torchs:
        monkeypatch.delattr(nn, "LinearCrossEntropyOptions", raising=False)
    states, weight, bias, targets = operands()
    expected = plain(states, weight, bias, targets, softcap)
    wanted = torch.autograd.grad(expected * 0.3, (states, weight, bias))
    found = linear_cross_entropy(states, weight, targets, bias, softcap)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for mine, other in zip(torch.autograd.grad(found * 0.3, (states, weight, bias)), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_new_rows_follow_those_that_stand_for_tokens(softcap: float | None) -> None:
    known, count = VOCABULARY - 5, 3
    states, weight, bias, targets = operands()
    new = (torch.arange(count * WIDTH, dtype=torch.float64).reshape(count, WIDTH) / 20).requires_grad_()
    targets = targets * (known + count) // VOCABULARY
    assert (targets >= known).any()
    whole, offsets = torch.cat([weight[:known], new]), torch.cat([bias[:known], bias.new_zeros(count)])
    learned = (states, weight, bias, new)
    expected = plain(states, whole, offsets, targets, softcap)
    wanted = torch.autograd.grad(expected, learned)
    found = linear_cross_entropy(states, weight, targets, bias, softcap, new, known)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for mine, other in zip(torch.autograd.grad(found, learned), wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        again = linear_cross_entropy(states, weight, targets, bias, softcap, new, known)
    torch.testing.assert_close(again, expected, rtol=1e-12, atol=0)


def test_a_frozen_head_and_rows_without_a_gradient() -> None:
    states, weight, _, targets = operands()
    expected = torch.autograd.grad(plain(states, weight, None, targets), states)[0]
    for softcap in (None, 1e9):  # torch's kernel, and ours with a cap far away
        loss = linear_cross_entropy(states, weight.detach(), targets, None, softcap)
        torch.testing.assert_close(torch.autograd.grad(loss, states)[0], expected, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(
            linear_cross_entropy(states, weight, targets), plain(states, weight, None, targets), rtol=1e-12, atol=0
        )
    empty = linear_cross_entropy(states[:0], weight, targets[:0])
    assert empty == 0 and torch.autograd.grad(empty, weight)[0].abs().sum() == 0


def test_in_half_precision_the_sum_is_not() -> None:
    """A sum of 600 losses in bfloat16 would be off by percents; products are rounded as the plain loss rounds them."""
    states, weight, _, targets = operands(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy(states, weight, targets)
        expected = F.cross_entropy(F.linear(states, weight).float(), targets, reduction="sum")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(found, (states, weight)), torch.autograd.grad(expected, (states, weight))
    exact = torch.autograd.grad(plain(states, weight, None, targets), (states, weight))
    for mine, theirs, true in zip(*gradients, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - true).norm() <= 1.05 * (theirs - true).norm()


def test_gradients_of_gradients_need_the_plain_loss() -> None:
    def curvature(loss: torch.Tensor) -> torch.Tensor:
        first = torch.autograd.grad(loss, states, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), weight)[0]

    states, weight, bias, targets = operands(rows=20)
    expected = curvature(plain(states, weight, bias, targets, 2.0))
    with plain_token_loss():
        torch.testing.assert_close(curvature(linear_cross_entropy(states, weight, targets, bias, 2.0)), expected)
    recomputed = chunked_cross_entropy(
        states, targets, lambda part: torch.tanh(F.linear(part, weight, bias) / 2) * 2, 8
    )
    torch.testing.assert_close(curvature(recomputed), expected)
    with pytest.raises(RuntimeError, match="use plain_token_loss"):
        curvature(linear_cross_entropy(states, weight, targets, bias, 2.0))
    loss = linear_cross_entropy(states, weight, targets, bias, 2.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="use plain_token_loss"):
        loss.backward()


def peak(run) -> int:
    """Most bytes that a call held at once, by the allocator's own account."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("way", ["torch", "ours", "recomputed"])
def test_the_peak_stays_below_the_logits(way: str) -> None:
    rows, vocabulary = 4096, 16384
    states = torch.randn(rows, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    targets = torch.randint(0, vocabulary, (rows,))
    logits = rows * vocabulary * 4
    ways = {
        "torch": lambda: linear_cross_entropy(states, weight, targets).backward(),
        "ours": lambda: linear_cross_entropy(states, weight, targets, softcap=30.0).backward(),
        "recomputed": lambda: chunked_cross_entropy(states, targets, lambda part: F.linear(part, weight)).backward(),
    }
    assert peak(ways[way]) < 0.3 * logits


def test_the_peak_of_the_plain_loss_does_not() -> None:
    states, weight = torch.randn(4096, 4, requires_grad=True), torch.randn(16384, 4)
    targets = torch.randint(0, 16384, (4096,))
    with plain_token_loss():
        assert peak(lambda: linear_cross_entropy(states, weight, targets).backward()) > 4096 * 16384 * 4
