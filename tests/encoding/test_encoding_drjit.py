"""Dr.Jit's hash grid, written by others, implements the literal reading: a second oracle for ``product``."""

import pytest
import torch
from small_encoding import make_encoding

dr = pytest.importorskip("drjit", reason="drjit is not installed")
if not dr.has_backend(dr.JitBackend.LLVM):
    pytest.skip("drjit finds no LLVM library", allow_module_level=True)
if not hasattr(pytest.importorskip("drjit.nn"), "HashGridEncoding"):
    pytest.skip("this drjit has no HashGridEncoding", allow_module_level=True)


@pytest.mark.parametrize("name", ["reference", "eager", "cpp"])
@pytest.mark.parametrize("smoothing", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("resolution, log2_size", [(7, 10), (63, 10)])
def test_product_reading(name, smoothing, resolution, log2_size):
    from drjit.llvm.ad import ArrayXf, Float
    from drjit.nn import HashGridEncoding

    if name == "cpp":
        cpu = pytest.importorskip("hashpose_ns.encoding.cpu")
        if cpu._library()[1] is not None:
            pytest.skip(f"cpp: {cpu._library()[1]}")
    encoding = make_encoding(
        name,
        num_levels=1,
        base_resolution=resolution,
        log2_hashmap_size=log2_size,
        gradient="product",
        smoothing=smoothing,
    )
    x = torch.rand(500, 3, requires_grad=True)
    grad_output = torch.randn(500, 2)
    output = encoding(x)
    output.backward(grad_output)

    other = HashGridEncoding(
        Float,
        3,
        n_levels=1,
        n_features_per_level=2,
        hashmap_size=2**log2_size,
        base_resolution=resolution + 1,  # theirs counts vertices
        align_corners=True,
        smooth_weight_gradients=True,
        smooth_weight_lambda=smoothing,
    )
    table = encoding.tables[0].detach()
    if encoding.grid.is_dense(0):  # theirs has the first axis fastest
        table = table.view(*[resolution + 1] * 3, 2).permute(2, 1, 0, 3)
    other.set_params(Float(table.reshape(-1).numpy()))
    points = ArrayXf(x.detach().T.contiguous().numpy())
    dr.enable_grad(points)
    features = other(points)
    dr.backward(dr.sum(features * ArrayXf(grad_output.T.contiguous().numpy()), axis=None))

    theirs = torch.tensor(features.numpy()).T
    theirs_grad = torch.tensor(dr.grad(points).numpy()).T
    torch.testing.assert_close(output.detach(), theirs, rtol=0, atol=2e-5)
    torch.testing.assert_close(x.grad, theirs_grad, rtol=0, atol=5e-6 * resolution * (1 + 2 * smoothing))
    assert x.grad.abs().mean() > 0.2 * resolution
