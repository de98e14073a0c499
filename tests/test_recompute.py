"""recompute.py: the gradient through steps that are computed again."""

from dataclasses import dataclass

import pytest
import torch

from tem_taichi.recompute import recomputed, tensors_in, with_tensors


def _step(state, n, a, b):
    return torch.sin(state * a) + n * b


def _plain(state, a, b):
    for n in range(5):
        state = _step(state, n, a, b)
    return state


def test_gradient_is_that_of_the_same_steps_in_one_graph() -> None:
    generator = torch.Generator().manual_seed(0)
    state, a, b = (torch.randn(4, dtype=torch.float64, generator=generator, requires_grad=True)
                   for _ in range(3))
    ours = torch.autograd.grad(recomputed(_step, 5, state, a, b).square().sum(), [state, a, b])
    plain = torch.autograd.grad(_plain(state, a, b).square().sum(), [state, a, b])
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)  # rounding of doubles


def test_parameters_that_need_no_gradient_get_none_and_may_be_whole_numbers() -> None:
    state = torch.ones(3, requires_grad=True)
    index = torch.tensor([2, 0, 1])
    out = recomputed(lambda x, n, i: x[i] * (n + 1.0), 3, state, index)
    out[0].backward()
    assert out.tolist() == [6.0, 6.0, 6.0]
    assert state.grad is not None and state.grad.tolist() == [6.0, 0.0, 0.0]  # a cycle of three


def test_a_second_derivative_is_refused() -> None:
    state = torch.ones(2, requires_grad=True)
    out = recomputed(lambda x, n: x**3, 2, state).square().sum()
    grad, = torch.autograd.grad(out, state, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@dataclass(frozen=True)
class _Part:
    name: str
    value: object


def test_tensors_are_found_and_replaced_in_nested_parts() -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    parts = (_Part("a", one), (_Part("b", 3.0), _Part("c", (two, None))))
    assert tensors_in(parts) == [one, two]
    swapped = with_tensors(parts, iter([two, one]))
    assert tensors_in(swapped) == [two, one]
    assert swapped[1][0] is parts[1][0]
    assert swapped[1][1].name == "c" and swapped[1][1].value[1] is None
