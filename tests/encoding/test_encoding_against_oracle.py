"""Features and gradients of every backend against the equations in float64."""

import pytest
import straight_through_oracle as oracle
import torch
from small_encoding import only_on

from hashpose_ns.encoding.grid import READINGS


def settings_of(encoding):
    grid = encoding.grid
    return dict(
        resolutions=grid.resolutions,
        table_size=2**grid.log2_hashmap_size,
        gradient=grid.gradient,
        smoothing=grid.smoothing,
        forward_smoothing=grid.forward_smoothing,
    )


def run(encoding, x, grad_output):
    """Output, x-gradient, tables' gradients."""
    x = x.clone().requires_grad_()
    output = encoding(x)
    x_grad, *table_grads = torch.autograd.grad(output, [x, *encoding.tables], grad_output)
    return output.detach(), x_grad, table_grads


def assert_close(actual, expected, scale, message=""):
    """Both within ``scale`` of each other, NaN never."""
    error = (actual.double() - expected).abs().max().item()
    assert error <= scale, f"{message}: differs by {error:.2e}, allowed {scale:.2e}"


@pytest.mark.parametrize("features, num_dims", [(1, 2), (2, 2), (2, 3), (4, 3), (8, 2)])
def test_features_are_d_linear(backend, num_dims, features):
    encoding = backend.encoding(num_dims=num_dims, features_per_level=features)
    assert [encoding.grid.is_dense(level) for level in (0, 3)] == [True, False]
    x = backend.points(1000, num_dims)
    expected = oracle.encode(x.double(), [table.double() for table in encoding.tables], **settings_of(encoding))
    assert_close(encoding(x), expected, 1e-6)


STRENGTHS = [(0.0, 3), (1.0, 2), (1.0, 3)]
"""Of smoothing, and the number of dimensions."""


@pytest.mark.parametrize(
    "gradient, smoothing, num_dims",
    [*((gradient, *pair) for gradient in READINGS for pair in STRENGTHS), ("product_norm", 0.5, 2), ("axis", 4.0, 3)],
)
def test_x_gradient_of_every_level(backend, num_dims, gradient, smoothing):
    encoding = backend.encoding(num_dims=num_dims, gradient=gradient, smoothing=smoothing)
    x = backend.points(600, num_dims)
    for level, resolution in enumerate(encoding.resolutions):
        grad_output = torch.zeros(len(x), encoding.out_dim, device=x.device)
        grad_output[:, 2 * level : 2 * level + 2] = torch.randn(len(x), 2)
        _, actual, _ = run(encoding, x, grad_output)
        _, expected, _ = oracle.gradients(x, list(encoding.tables), grad_output, **settings_of(encoding))
        assert expected.abs().max() > 0.5 * resolution
        assert_close(actual, expected, 5e-6 * resolution * (1 + 2 * smoothing), f"level {level}")


@pytest.mark.parametrize("num_dims", [2, 3])
def test_table_gradients_are_the_linear_weights(backend, num_dims):
    expected, first = None, None
    grad_output = torch.randn(600, 8).to(backend.device)
    x = backend.points(600, num_dims)
    for gradient in READINGS:
        for smoothing in (0.0, 1.0, 4.0):
            torch.manual_seed(5)
            encoding = backend.encoding(num_dims=num_dims, gradient=gradient, smoothing=smoothing)
            _, _, actual = run(encoding, x, grad_output)
            if first is None:
                tables = list(encoding.tables)
                _, _, expected = oracle.gradients(
                    x, tables, grad_output, **{**settings_of(encoding), "gradient": "linear"}
                )
                first = actual
                for one, other in zip(actual, expected):
                    assert_close(one, other, 2e-5)
            for one, other in zip(actual, first):
                if backend.name == "cpp":
                    assert torch.equal(one, other)
                else:  # autograd's order of sums, and CUDA's atomics, are not fixed
                    torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


def test_any_number_of_points(backend):
    """Backends work in blocks: remainders, and more than one block."""
    encoding = backend.encoding(gradient="product_norm")
    for count in (1, 127, 128, 129, 9000):
        x = backend.points(count)
        grad_output = torch.randn(count, encoding.out_dim, device=x.device)
        output, x_grad, table_grads = run(encoding, x, grad_output)
        expected, x_expected, table_expected = oracle.gradients(
            x, list(encoding.tables), grad_output, **settings_of(encoding)
        )
        assert_close(output, expected, 1e-6, f"{count} points")
        assert_close(x_grad, x_expected, 5e-3, f"{count} points")
        for one, other in zip(table_grads, table_expected):
            assert_close(one, other, 1e-3, f"{count} points")


@only_on("reference", "eager")
@pytest.mark.parametrize(
    "gradient, num_dims",
    [*zip(READINGS, (2, 3, 3, 2)), ("forward_smoothing", 2), ("forward_smoothing", 3)],
)
def test_float64(backend, num_dims, gradient):
    """In double precision the closed forms and the straight-through construction agree to rounding."""
    smooth = gradient == "forward_smoothing"
    encoding = backend.encoding(
        num_dims=num_dims,
        gradient="axis" if smooth else gradient,
        forward_smoothing=smooth,
        smoothing=0.7,
        max_resolution=300,
        features_per_level=3,
    ).double()
    x = backend.points(500, num_dims).double()
    grad_output = torch.randn(500, encoding.out_dim, device=x.device, dtype=torch.float64)
    output, x_grad, table_grads = run(encoding, x, grad_output)
    assert output.dtype == torch.float64
    expected, x_expected, table_expected = oracle.gradients(
        x, list(encoding.tables), grad_output, **settings_of(encoding)
    )
    assert_close(output, expected, 1e-12)
    assert_close(x_grad, x_expected, 1e-9)
    for one, other in zip(table_grads, table_expected):
        assert_close(one, other, 1e-11)


@only_on("reference", "eager", "triton")
def test_forward_smoothing_in_float32(backend):
    encoding = backend.encoding(forward_smoothing=True)
    x = backend.points(500)
    grad_output = torch.randn(500, encoding.out_dim, device=x.device)
    output, x_grad, table_grads = run(encoding, x, grad_output)
    expected, x_expected, table_expected = oracle.gradients(
        x, list(encoding.tables), grad_output, **settings_of(encoding)
    )
    assert_close(output, expected, 2e-6)
    # delta is quadratic at 0, where 1 - cos cancels: worse than the d-linear weights
    assert_close(x_grad, x_expected, 5e-3)
    for one, other in zip(table_grads, table_expected):
        assert_close(one, other, 2e-5)


def test_x_gradient_is_the_derivative_of_the_features(backend):
    """Without smoothing nothing is straight-through: finite differences agree."""
    exact = backend.name in ("reference", "eager")
    assert_derivative(backend, backend.encoding(gradient="linear"), torch.float64 if exact else torch.float32, step=0.2)


@only_on("reference", "eager")
def test_x_gradient_is_the_derivative_of_the_smoothed_features(backend):
    """With smoothing in the forward pass nothing is straight-through either."""
    assert_derivative(backend, backend.encoding(forward_smoothing=True), torch.float64, step=1e-4)


def assert_derivative(backend, encoding, dtype, step):
    """The x-gradient is a central difference of so many cells of the finest level."""
    encoding = encoding.to(dtype)
    # Within a cell of the finest level, and so of every level: linear along an axis, exact for any step.
    finest = encoding.resolutions[-1]
    cells = torch.randint(0, finest, (200, 3), device=backend.device)
    x = ((cells + 0.3 + 0.4 * torch.rand(200, 3, device=backend.device)) / finest).to(dtype)
    grad_output = torch.randn(200, encoding.out_dim, device=backend.device, dtype=dtype)
    _, x_grad, _ = run(encoding, x, grad_output)
    step /= finest
    for axis in range(3):
        shift = torch.zeros(3, device=backend.device, dtype=dtype)
        shift[axis] = step
        difference = ((encoding(x + shift) - encoding(x - shift)).detach() * grad_output).sum(-1) / (2 * step)
        torch.testing.assert_close(x_grad[:, axis], difference, rtol=0, atol=1e-4 if dtype == torch.float64 else 5e-2)
    assert x_grad.abs().mean() > 50


@pytest.mark.parametrize("gradient", READINGS)
def test_force_of_a_constant_table(backend, gradient):
    """A constant table says nothing about where a point should be. The literal reading pushes it all the same."""
    encoding = backend.encoding(gradient=gradient)
    with torch.no_grad():
        for table in encoding.tables:
            table.fill_(3.0)
    x = backend.points(500)
    _, x_grad, _ = run(encoding, x, torch.ones(500, encoding.out_dim, device=x.device))
    if gradient == "product":
        assert x_grad.abs().mean() > 10
    else:
        assert x_grad.abs().max() < 0.05  # of slopes up to 3 * 256


def test_smoothing_readings_coincide_in_one_dimension(backend):
    """On a grid line only two corners have weight: the paper's one-dimensional case, which all readings extend."""
    x = backend.points(300)
    x[:, 1:] = torch.randint(0, 5, (300, 2), device=x.device) / 4  # on vertices of every level's other axes
    grad_output = torch.randn(300, 8, device=x.device)
    slopes = {}
    for gradient in READINGS:
        torch.manual_seed(5)
        encoding = backend.encoding(gradient=gradient, smoothing=2.0)
        slopes[gradient] = run(encoding, x, grad_output)[1][:, 0]
    for gradient in ("product", "product_norm"):
        torch.testing.assert_close(slopes[gradient], slopes["axis"], rtol=0, atol=0.01)
    assert (slopes["linear"] - slopes["axis"]).abs().max() > 100


def test_backends_share_one_rounding(backend):
    """At resolutions that are not powers of two all backends must put a point into the same cell as the reference."""
    settings = dict(num_levels=8, base_resolution=5, max_resolution=1999, log2_hashmap_size=14)
    torch.manual_seed(3)
    reference = backend.reference(**settings)
    encoding = backend.encoding(**settings)
    encoding.load_state_dict(reference.state_dict())
    x = backend.points(20000)
    grad_output = torch.randn(20000, 16, device=x.device)
    (output, x_grad, _), (expected, x_expected, _) = run(encoding, x, grad_output), run(reference, x, grad_output)
    torch.testing.assert_close(output, expected, rtol=0, atol=6e-7)
    torch.testing.assert_close(x_grad, x_expected, rtol=0, atol=2e-6 * x_expected.abs().max().item())
