"""What the module promises beside its numbers, on every backend: shapes, the box' edges, training levels, autocast."""

import copy
import itertools
import pickle

import pytest
import torch
from small_encoding import only_on


def run(encoding, x, grad_output, **kwargs):
    """Output, x-gradient, tables' gradients as training sees them."""
    x = x.clone().requires_grad_()
    encoding.zero_grad()
    output = encoding(x, **kwargs)
    output.backward(grad_output)
    return output.detach(), x.grad, [table.grad for table in encoding.tables]


def test_levels_that_do_not_train(backend):
    encoding = backend.encoding()
    x, grad_output = backend.points(3000), torch.randn(3000, 8).to(backend.device)
    output, x_grad, table_grads = run(encoding, x, grad_output)
    flags = [True, False, False, True]
    output_some, x_grad_some, table_grads_some = run(encoding, x, grad_output, train_levels=flags)
    assert torch.equal(output_some, output)
    torch.testing.assert_close(x_grad_some, x_grad, rtol=0, atol=0 if backend.device.type == "cpu" else 1e-3)
    for flag, some, full in zip(flags, table_grads_some, table_grads):
        if flag:
            torch.testing.assert_close(some, full, rtol=0, atol=0 if backend.device.type == "cpu" else 1e-4)
        else:
            assert some is None
    _, x_grad_none, table_grads_none = run(encoding, x, grad_output, train_levels=[False] * 4)
    torch.testing.assert_close(x_grad_none, x_grad, rtol=0, atol=0 if backend.device.type == "cpu" else 1e-3)
    assert table_grads_none == [None] * 4


def test_adam_skips_levels_that_do_not_train(backend):
    encoding = backend.encoding()
    optimizer = torch.optim.Adam(encoding.parameters(), lr=0.1)
    before = copy.deepcopy(encoding.state_dict())
    encoding(backend.points(500), train_levels=[True, False, True, False]).sum().backward()
    optimizer.step()
    moved = [not torch.equal(table, before[f"tables.{level}"]) for level, table in enumerate(encoding.tables)]
    assert moved == [True, False, True, False]
    assert encoding.tables[1] not in optimizer.state


def test_gradients_are_computed_only_where_required(backend, monkeypatch):
    encoding = backend.encoding()
    calls = []
    kind = type(encoding._backend(backend.points(1), encoding.grid))
    original = kind.backward

    def spy(self, grad_output, x, tables, grid, x_needs_grad, table_needs_grad):
        calls.append((x_needs_grad, list(table_needs_grad)))
        return original(self, grad_output, x, tables, grid, x_needs_grad, table_needs_grad)

    monkeypatch.setattr(kind, "backward", spy)
    x = backend.points(300)
    encoding(x).sum().backward()
    assert x.grad is None and encoding.tables[0].grad is not None
    encoding.requires_grad_(False)
    x.requires_grad_()
    encoding(x).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert not encoding(x).requires_grad
    assert calls == [(False, [True] * 4), (True, [False] * 4)]


@only_on(device="cpu")  # on a GPU atomics add in any order
@pytest.mark.parametrize("dtype, gradient", [(torch.bfloat16, "product_norm"), (torch.float16, "axis")])
def test_autocast_changes_no_bit(backend, dtype, gradient):
    encoding = backend.encoding(gradient=gradient)
    x, grad_output = backend.points(1000), torch.randn(1000, 8)
    plain = run(encoding, x, grad_output)
    with torch.autocast(backend.device.type, dtype=dtype):
        assert (x @ x.T).dtype == dtype
        mixed = run(encoding, x, grad_output)
    assert mixed[0].dtype == torch.float32
    for one, other in zip([*plain[:2], *plain[2]], [*mixed[:2], *mixed[2]]):
        assert torch.equal(one, other)


def test_backends_never_see_autocast(backend, monkeypatch):
    """So that a backend may multiply matrices without thinking of it."""
    encoding = backend.encoding()
    kind = type(encoding._backend(backend.points(1), encoding.grid))
    seen = []

    def spied(original):
        def method(*args):
            seen.append((torch.is_autocast_enabled(backend.device.type), torch.is_grad_enabled()))
            return original(*args)

        return method

    monkeypatch.setattr(kind, "forward", spied(kind.forward))
    monkeypatch.setattr(kind, "backward", spied(kind.backward))
    with torch.autocast(backend.device.type, dtype=torch.bfloat16):
        encoding(backend.points(10)).sum().backward()
    assert seen == [(False, False), (False, False)]


def test_half_precision_points(backend):
    """Positions that autocast has rounded are taken as they are; their gradient comes back in their dtype."""
    encoding = backend.encoding()
    x = backend.points(50).half().requires_grad_()
    output = encoding(x)
    assert torch.equal(output, encoding(x.detach().float()))
    output.sum().backward()
    assert x.grad.dtype == torch.float16


@pytest.mark.parametrize("gradient", ["linear", "product", "product_norm", "axis"])
def test_outside_the_box(backend, gradient):
    """A point outside has the features of the nearest point inside, and no gradient along the axes it was moved."""
    encoding = backend.encoding(gradient=gradient)
    x = 3 * backend.points(400) - 1
    grad_output = torch.randn(400, 8, device=x.device)
    output, x_grad, table_grads = run(encoding, x, grad_output)
    inside = (x >= 0) & (x <= 1)
    assert inside.any() and not inside.all()
    output_clamped, x_grad_clamped, table_grads_clamped = run(encoding, x.clamp(0, 1), grad_output)
    assert torch.equal(output, output_clamped)
    assert (x_grad[~inside] == 0).all()
    assert torch.equal(x_grad[inside], x_grad_clamped[inside])
    for one, other in zip(table_grads, table_grads_clamped):
        torch.testing.assert_close(one, other, rtol=0, atol=0 if backend.device.type == "cpu" else 1e-4)


@pytest.mark.parametrize("num_dims", [2, 3])
def test_vertices_and_faces(backend, num_dims):
    """At the vertices of a dense level, the corners of the box included, features are the table's rows, row-major."""
    encoding = backend.encoding(num_dims=num_dims, gradient="linear")
    level, n = 0, encoding.resolutions[0]
    assert encoding.grid.is_dense(level)
    vertices = torch.tensor(list(itertools.product(range(n + 1), repeat=num_dims)), device=backend.device)
    x = vertices / n
    grad_output = torch.zeros(len(x), encoding.out_dim, device=x.device)
    grad_output[:, 0] = 1
    output, x_grad, table_grads = run(encoding, x, grad_output)
    torch.testing.assert_close(output[:, :2], encoding.tables[level].detach(), rtol=0, atol=1e-6)
    grid = encoding.tables[level].detach().view(*[n + 1] * num_dims, 2)
    torch.testing.assert_close(output[:, :2], grid[tuple(vertices.T)], rtol=0, atol=1e-6)
    # Each vertex was visited once; the slope is the difference to the next vertex, at the upper face to the one before.
    torch.testing.assert_close(table_grads[level][:, 0], torch.ones_like(table_grads[level][:, 0]))
    for axis in range(num_dims):
        lower = vertices.clone()
        lower[:, axis].clamp_(max=n - 1)
        upper = lower.clone()
        upper[:, axis] += 1
        slope = n * (grid[tuple(upper.T)] - grid[tuple(lower.T)])[:, 0]
        torch.testing.assert_close(x_grad[:, axis], slope, rtol=0, atol=1e-4)


def test_empty_batch(backend):
    encoding = backend.encoding()
    for shape in [(0, 3), (4, 0, 3)]:
        x = torch.zeros(shape, device=backend.device, requires_grad=True)
        output = encoding(x)
        assert output.shape == (*shape[:-1], 8)
        output.sum().backward()
        assert x.grad.shape == shape
    assert all((table.grad == 0).all() for table in encoding.tables)


def test_batch_shapes_and_strides(backend):
    encoding = backend.encoding()
    x = backend.points(60)
    expected, x_expected, _ = run(encoding, x, torch.ones(60, 8, device=x.device))
    for view in (x.view(3, 4, 5, 3), x.view(60, 1, 3), x.T.contiguous().T):
        grad_output = torch.ones(1, device=x.device).expand(*view.shape[:-1], 8)
        output, x_grad, _ = run(encoding, view, grad_output)
        assert torch.equal(output.view(60, 8), expected)
        assert torch.equal(x_grad.reshape(60, 3), x_expected)
    assert encoding(x[7]).shape == (8,)
    torch.testing.assert_close(encoding(x[7]), expected[7], rtol=0, atol=1e-6)


def test_nan_stays_with_its_point(backend):
    encoding = backend.encoding()
    x = backend.points(300)
    expected = encoding(x)
    x[5, 1] = float("nan")
    output = encoding(x)
    assert output[5].isnan().all()
    others = torch.arange(300, device=x.device) != 5
    assert torch.equal(output[others], expected[others])


def test_the_papers_finest_level(backend):
    """N = 2048, not 2047, and T = 2^19: the products in the hash overflow 32 bits."""
    encoding = backend.encoding(num_levels=16, base_resolution=16, max_resolution=2048, log2_hashmap_size=19)
    assert encoding.resolutions[-1] == 2048
    vertices = torch.randint(0, 2049, (500, 3), device=backend.device)
    output = encoding(vertices / 2048)[:, -2:]
    rows = [(i ^ (j * 2654435761) % 2**32 ^ (k * 805459861) % 2**32) % 2**19 for i, j, k in vertices.tolist()]
    torch.testing.assert_close(output, encoding.tables[-1][rows], rtol=0, atol=1e-6)


def test_copies(backend):
    encoding = backend.encoding()
    x = backend.points(20)
    expected = encoding(x)
    for copied in (copy.deepcopy(encoding), pickle.loads(pickle.dumps(encoding))):
        assert torch.equal(copied(x), expected)


def test_settings_can_change_on_a_trained_encoding(backend):
    encoding = backend.encoding(gradient="linear")
    x, grad_output = backend.points(100), torch.ones(100, 8).to(backend.device)
    linear = run(encoding, x, grad_output)[1]
    encoding.config.gradient = "axis"
    assert not torch.equal(run(encoding, x, grad_output)[1], linear)
    encoding.config.smoothing = 0.0
    torch.testing.assert_close(run(encoding, x, grad_output)[1], linear, rtol=0, atol=1e-3)
