"""SE(3): the exponential map of twists in few operations, and its inverse. Twists are [translation, rotation]."""

from __future__ import annotations

import functools
import math
from typing import Any, Dict, List

import roma
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALL_ANGLE = 1.25
"""Angle (radians) below which the coefficients are Taylor sums. Above, nothing in their closed forms cancels badly."""
TAYLOR_TERMS = {torch.float32: 8, torch.float64: 12}
"""Terms of these sums; the first one left out is below 1e-10 or 1e-20."""


def exp_map_SE3(twists: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 3 4"]:
    r"""The exponential map se(3) -> SE(3), for any angle; its gradient is right at 0 as well.

    With the twist's matrix :math:`M = [[\omega]_\times, v; 0, 0]` and the angle :math:`\theta = |\omega|`, from
    :math:`M^4 = -\theta^2 M^2`,

    .. math:: \exp M = I + M + B M^2 + C M^3, \quad
        B = (1 - \cos\theta) / \theta^2, \quad C = (\theta - \sin\theta) / \theta^3.

    It takes an eighth of the operations of nerfstudio's map of this name, which were half of all that a training step
    launched on a GPU, and keeps the digits that the other one loses at angles between 0.005 and 0.5. The same in plain
    lines is `exp_map_reference`.

    Args:
        twists: [translation, rotation] (scene units, radians), float32 or float64.
    Returns:
        [R | V v] with rotation R and translation V v.
    """
    return _Exponential.apply(twists)


def exp_map_reference(twists: Float[Tensor, "batch 6"]) -> Float[Tensor, "batch 3 4"]:
    """`exp_map_SE3` as it is defined: the exponential of the twist's 4x4 matrix. Slow; tests compare the two."""
    (tx, ty, tz), (x, y, z) = twists.T.split(3)
    zero = torch.zeros_like(x)
    rows = [[zero, -z, y, tx], [z, zero, -x, ty], [-y, x, zero, tz], [zero, zero, zero, zero]]
    matrices = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    return torch.linalg.matrix_exp(matrices)[:, :3]


class _Exponential(torch.autograd.Function):
    """All is small, and what counts is the number of operations. The batch comes last, so that a CPU computes many at
    once. No matrix product of torch's, which mixed precision or TF32 would round."""

    @staticmethod
    def forward(ctx: Any, twists: Tensor) -> Tensor:
        constants = _constants(twists.dtype, twists.device)
        columns = twists.T
        matrix = columns[constants["entries"]].view(3, 4, -1) * constants["signs"]
        scale, (first, second, *slopes) = _coefficients(columns[3:], constants).split(4)
        square = _product(matrix[:, :3], matrix)
        cube = _product(matrix[:, :3], square)
        # M^3 is -theta^2 M but for the translation: I + M + C M^3 has (sin theta / theta) M, with less rounding.
        result = torch.addcmul(constants["identity"], scale, matrix).addcmul_(first, square)
        result[:, 3].addcmul_(second, cube[:, 3])
        ctx.save_for_backward(columns, matrix, square, cube, first, second, *slopes)
        return result.permute(2, 0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        columns, matrix, square, cube, first, second, first_slope, second_slope = ctx.saved_tensors
        constants = _constants(columns.dtype, columns.device)
        grad, skew = grad.to(columns.dtype).permute(1, 2, 0), matrix[:, :3]
        # d(M^2) = dM M + M dM and d(M^3) = dM M^2 + M dM M + M^2 dM, turned around; skew^T = -skew.
        left, right = _product(skew, grad), _product(grad, matrix.transpose(0, 1))
        matrix_grad = torch.addcmul(grad, first, left, value=-1).addcmul_(second, _product(skew, left))
        both = _product(skew, right).add_(_product(right, skew))
        matrix_grad[:, :3].addcmul_(first, right).addcmul_(second, both, value=-1)
        along = torch.addcmul(first_slope * square, second_slope, cube).mul_(grad).sum((0, 1))
        result = (matrix_grad.flatten(0, 1) * constants["transposed"]).sum(1)
        result[3:].addcmul_(along, columns[3:])
        return result.T


def _product(left: Float[Tensor, "3 inner batch"], right: Float[Tensor, "inner columns batch"]) -> Tensor:
    """Matrix products, added up in the precision of the factors."""
    return (left[:, :, None] * right).sum(1)


def _coefficients(rotations: Float[Tensor, "3 batch"], constants: Dict[str, Tensor]) -> Float[Tensor, "8 batch"]:
    """sin(theta) / theta three times and 1 (what scales the columns of M), B, C, and the slopes B'(theta) / theta and
    C'(theta) / theta. They are sums of theta^n cos(m theta + phase) with constant factors: Taylor sums of some of these
    terms below the small angle, closed forms of the others above."""
    angles = torch.linalg.vector_norm(rotations, dim=0)
    terms = angles ** constants["powers"] * (angles * constants["frequencies"] + constants["phases"]).cos()
    terms = terms.masked_fill((angles < SMALL_ANGLE) != constants["is_taylor"], 0.0)
    return (constants["factors"] * terms).sum(1)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)
def _constants(dtype: torch.dtype, device: torch.device) -> Dict[str, Tensor]:
    """What the exponential map multiplies by, on the device, copied there once."""
    orders = range(TAYLOR_TERMS[dtype])

    def taylor(first: int, slope: bool = False) -> List[float]:
        """Of sum_k (-1)^k theta^2k / (2k + first)!, or of its derivative over theta."""
        if slope:
            return [2 * (k + 1) * (-1) ** (k + 1) / math.factorial(2 * k + 2 + first) for k in orders]
        return [(-1) ** k / math.factorial(2 * k + first) for k in orders]

    # 1, theta^-1 sin, theta^-2, theta^-2 cos, theta^-3 sin, theta^-4, theta^-4 cos, theta^-5 sin
    closed_terms = [(0, 0, 0), (-1, 1, -1), (-2, 0, 0), (-2, 1, 0), (-3, 1, -1), (-4, 0, 0), (-4, 1, 0), (-5, 1, -1)]
    sine = taylor(1) + [0, 1, 0, 0, 0, 0, 0, 0]
    factors = [
        *(sine, sine, sine),
        [1] + [0] * (len(orders) - 1) + [1, 0, 0, 0, 0, 0, 0, 0],
        taylor(2) + [0, 0, 1, -1, 0, 0, 0, 0],
        taylor(3) + [0, 0, 1, 0, -1, 0, 0, 0],
        taylor(2, slope=True) + [0, 0, 0, 0, 1, -2, 2, 0],
        taylor(3, slope=True) + [0, 0, 0, 0, 0, -2, -1, 3],
    ]
    terms = [(2 * k, 0, 0) for k in orders] + closed_terms
    powers, frequencies, quarters = torch.tensor(terms, dtype=torch.float64).T[:, :, None]
    # The entries of M, row by row: which component of the twist, and its sign.
    entries, signs = [5, 5, 4, 0, 5, 5, 3, 1, 4, 3, 5, 2], [0, -1, 1, 1, 1, 0, -1, 1, -1, 1, 0, 1]
    transposed = torch.zeros(6, 12)
    transposed[entries, range(12)] = torch.tensor(signs, dtype=torch.float32)
    constants = {
        "factors": torch.tensor(factors, dtype=torch.float64)[..., None],
        "powers": powers,
        "frequencies": frequencies,
        "phases": quarters * (math.pi / 2),
        "signs": torch.tensor(signs).view(3, 4, 1),
        "identity": torch.eye(3, 4)[..., None],
        "transposed": transposed[..., None],
    }
    return {
        "entries": torch.tensor(entries, device=device),
        "is_taylor": (torch.arange(len(terms), device=device) < len(orders))[:, None],
        **{name: constant.to(device, dtype) for name, constant in constants.items()},
    }


def log_map_SE3(motion: Float[Tensor, "3 4"]) -> Float[Tensor, "6"]:
    """The twist [translation, rotation] whose exponential is a rigid motion; float64, angles below pi."""
    rotation = roma.rotmat_to_rotvec(roma.special_procrustes(motion[:, :3].double()))
    angle = float(rotation.norm())
    skew = torch.zeros(3, 3, dtype=torch.float64, device=motion.device)
    skew[[2, 0, 1], [1, 2, 0]] = rotation
    skew = skew - skew.T
    first, second = 0.5 - angle**2 / 24, 1 / 6 - angle**2 / 120
    if angle > 1e-3:
        first, second = (1 - math.cos(angle)) / angle**2, (angle - math.sin(angle)) / angle**3
    jacobian = torch.eye(3, dtype=torch.float64, device=motion.device) + first * skew + second * skew @ skew
    return torch.cat([torch.linalg.solve(jacobian, motion[:, 3].double()), rotation])
