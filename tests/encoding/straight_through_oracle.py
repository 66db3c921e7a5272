"""The encoding once more, as few lines as possible and independent of the package: float64, gradients by autograd."""

import itertools
import math

import torch


def encode(x, tables, resolutions, table_size, gradient="linear", smoothing=1.0, forward_smoothing=False):
    """x [B, d] inside the box, tables per level [entries, F] -> [B, L * F]."""

    def delta(w):
        return (1 - torch.cos(math.pi * w)) / 2

    def surrogate(w):
        return w + smoothing * delta(w) - smoothing * delta(w).detach()

    axis = gradient == "axis" and not forward_smoothing
    levels = []
    for table, n in zip(tables, resolutions):
        dims = x.shape[1]
        cell = (x.detach() * n).floor().clamp(max=n - 1).long()
        f = x * n - cell
        w, h = [], []
        for corner in itertools.product([0, 1], repeat=dims):
            u = [f[:, k] if b else 1 - f[:, k] for k, b in enumerate(corner)]
            w.append(math.prod(surrogate(v) if axis else v for v in u))
            vertex = [cell[:, k] + b for k, b in enumerate(corner)]
            if (n + 1) ** dims <= table_size:
                h.append(table.view(*[n + 1] * dims, -1)[tuple(vertex)])
            else:
                row = vertex[0] * 1
                for coordinate, prime in zip(vertex[1:], (2654435761, 805459861)):
                    row = row ^ (coordinate * prime % 2**32)
                h.append(table[row % table_size])
        w, h = torch.stack(w), torch.stack(h)
        if forward_smoothing:
            w = delta(w)
        elif gradient.startswith("product"):
            w = surrogate(w)
        if forward_smoothing or gradient == "product_norm":
            w = w / w.sum(0)
        levels.append((w[:, :, None] * h).sum(0))
    return torch.cat(levels, dim=1)


def gradients(x, tables, grad_output, **settings):
    """Output, x-gradient and the tables' gradients of :func:`encode` in float64."""
    x = x.detach().double().requires_grad_()
    tables = [table.detach().double().requires_grad_() for table in tables]
    output = encode(x, tables, **settings)
    x_grad, *table_grads = torch.autograd.grad(output, [x, *tables], grad_output.double())
    return output.detach(), x_grad, table_grads
