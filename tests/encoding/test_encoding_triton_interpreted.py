"""The Triton kernels in Triton's interpreter against the float64 reference: test_encoding_triton.py starts this."""

from __future__ import annotations

import pytest
import torch
from small_encoding import make_encoding

from hashpose_ns.encoding import triton
from hashpose_ns.encoding.backends import get_backend
from hashpose_ns.encoding.grid import READINGS
from hashpose_ns.encoding.triton import TritonBackend, disagreement, interpreted

pytestmark = pytest.mark.skipif(not interpreted(), reason="run in the interpreter by test_encoding_triton.py")
BACKEND, REFERENCE, EAGER = (get_backend(name) for name in ("triton", "reference", "eager"))
CPU = torch.device("cpu")


class Case:
    """Points, some of them outside the box or on its faces; a table per level; a gradient that all levels share in."""

    def __init__(self, count: int = 200, **settings) -> None:
        encoding = make_encoding("triton", **settings)
        self.grid = grid = encoding.grid
        self.tables = [table.detach() for table in encoding.tables]
        self.x = 1.1 * torch.rand(count, grid.num_dims) - 0.05
        self.x[:4] = torch.tensor([0.0, 1.0, 0.25, 0.5])[:, None]
        cells = torch.tensor(grid.resolutions).repeat_interleave(grid.features_per_level)
        self.grad_output = torch.randn(count, len(cells)) / cells  # slopes of level l are N_l times as large

    def expected(self, x_needs_grad: bool, tables_need_grad: bool):
        """The reference's features and gradients, in float64."""
        x, grad_output, *tables = (tensor.double() for tensor in (self.x, self.grad_output, *self.tables))
        needed = [tables_need_grad] * len(tables)
        return (
            REFERENCE.forward(x, tables, self.grid),
            *REFERENCE.backward(grad_output, x, tables, self.grid, x_needs_grad, needed),
        )

    def table_gradients(self, needed):
        return BACKEND.backward(self.grad_output, self.x, self.tables, self.grid, False, needed)[1]


def assert_close(actual, expected, atol):
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("num_dims", [2, 3])
@pytest.mark.parametrize("gradient", READINGS)
def test_x_gradient(num_dims, gradient):
    for smoothing in (0.0, 0.5, 1.0, 4.0):
        case = Case(num_dims=num_dims, gradient=gradient, smoothing=smoothing)
        x_grad, table_grads = BACKEND.backward(case.grad_output, case.x, case.tables, case.grid, True, [False] * 4)
        _, expected, _ = case.expected(True, False)
        assert table_grads == [None] * 4
        assert expected.abs().max() > 1
        assert_close(x_grad, expected, 4e-6 * (1 + smoothing))


@pytest.mark.parametrize("forward_smoothing", [False, True])
@pytest.mark.parametrize("num_dims", [2, 3])
@pytest.mark.parametrize("features", [1, 2, 8])
def test_features_and_table_gradients(features, num_dims, forward_smoothing):
    case = Case(num_dims=num_dims, features_per_level=features, forward_smoothing=forward_smoothing)
    expected, x_expected, table_expected = case.expected(True, True)
    assert_close(BACKEND.forward(case.x, case.tables, case.grid), expected, 1e-6)
    x_grad, table_grads = BACKEND.backward(case.grad_output, case.x, case.tables, case.grid, True, [True] * 4)
    assert_close(x_grad, x_expected, 3e-5 if forward_smoothing else 1e-5 * features**0.5)
    for one, other in zip(table_grads, table_expected):
        assert one.is_contiguous()
        assert_close(one, other, 1e-6)


def test_levels_that_need_no_gradient():
    case = Case()
    full = case.table_gradients([True] * 4)
    some = case.table_gradients([False, True, False, True])
    assert [grad is None for grad in some] == [True, False, True, False]
    assert torch.equal(some[1], full[1]) and torch.equal(some[3], full[3])


def test_more_than_one_program(monkeypatch):
    """On a CPU one program takes all points; here as on a GPU, many take some and the last one fewer."""
    case = Case(count=40)
    expected, x_expected, table_expected = case.expected(True, True)
    monkeypatch.setattr(triton, "_blocks", lambda x: (16, -(-len(x) // 16)))
    assert_close(BACKEND.forward(case.x, case.tables, case.grid), expected, 1e-6)
    x_grad, table_grads = BACKEND.backward(case.grad_output, case.x, case.tables, case.grid, True, [True] * 4)
    assert_close(x_grad, x_expected, 1e-5)
    for one, other in zip(table_grads, table_expected):
        assert_close(one, other, 1e-6)


def test_tables_that_lie_anywhere():
    """Views that start between the addresses of vector loads, or with rows apart."""
    case = Case(gradient="product_norm")
    expected, x_expected, _ = case.expected(True, False)
    flat = torch.cat([torch.zeros(1), *(table.flatten() for table in case.tables)])
    views, start = [], 1
    for table in case.tables:
        views.append(flat[start : start + table.numel()].view_as(table))
        start += table.numel()
    views[1] = case.tables[1].T.contiguous().T
    assert views[0].data_ptr() % 16 and not views[1].is_contiguous()
    assert_close(BACKEND.forward(case.x, views, case.grid), expected, 1e-6)
    x_grad, table_grads = BACKEND.backward(case.grad_output, case.x, views, case.grid, True, [True] * 4)
    assert_close(x_grad, x_expected, 1e-5)
    for one, other in zip(table_grads, case.table_gradients([True] * 4)):
        assert torch.equal(one, other)


def test_deterministic_algorithms(monkeypatch):
    """Where they are asked for, eager torch, which has them, adds up the tables' gradients."""
    case = Case()
    atomics = case.table_gradients([True, True, False, True])
    _, expected = EAGER.backward(case.grad_output, case.x, case.tables, case.grid, False, [True, True, False, True])
    monkeypatch.setattr(triton, "_table_gradients", None)  # must not be called
    torch.use_deterministic_algorithms(True)
    try:
        actual = case.table_gradients([True, True, False, True])
        assert case.table_gradients([False] * 4) == [None] * 4
    finally:
        torch.use_deterministic_algorithms(False)
    assert actual[2] is None
    for level in (0, 1, 3):
        assert torch.equal(actual[level], expected[level])
        torch.testing.assert_close(actual[level], atomics[level], rtol=0, atol=1e-6)


def test_the_check_before_first_use():
    """It trusts the kernels, and notices others that are wrong in one of the results or fail."""

    class Wrong(TritonBackend):
        def forward(self, x, tables, grid):
            return super().forward(x, tables, grid) * 1.01

    class WrongGradient(TritonBackend):
        def backward(self, *args):
            x_grad, table_grads = super().backward(*args)
            return x_grad, [table_grads[0], table_grads[1] * 1.01]

    class Broken(TritonBackend):
        def forward(self, x, tables, grid):
            raise RuntimeError("no kernel image is available.\nmore")

    assert disagreement(BACKEND, CPU) is None
    assert "do not agree on cpu" in disagreement(Wrong(), CPU)
    assert "do not agree on cpu" in disagreement(WrongGradient(), CPU)
    assert disagreement(Broken(), CPU) == "its kernels cannot run on cpu (no kernel image is available)"
