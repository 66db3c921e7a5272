"""Rendering in chunks of as many rays as memory allows."""

from __future__ import annotations

from collections import defaultdict
from typing import Callable, Dict, List

import torch
from torch import Tensor, nn

from nerfstudio.cameras.rays import RayBundle

CPU_BYTES = 1 << 28
"""What a chunk may take on a CPU. More is no faster, and from a few GiB on glibc fetches every tensor's memory anew
from the kernel (`host.keep_freed_memory`), which took four times as long."""
GPU_SHARE = 0.25
"""Share of a GPU's free memory that a chunk may take."""
GPU_BYTES = 4 << 30
"""More than this keeps no GPU busier, and would bring tensors near to 2^31 elements."""
BYTES_BESIDE = 160
"""Of a sample, beside its features and the decoder's layers: where it is, its density, colour and weight."""
FEWEST, MOST = 256, 1 << 16
"""Limits of a chunk, in rays."""


def bytes_per_sample(field: nn.Module, bfloat16: bool) -> int:
    """What rendering a sample takes at its peak, without gradients: the values in and out of the decoder's widest
    layer, and what comes into the decoder. A fused decoder (tinycudann) keeps no layers."""
    layers = [layer for layer in field.modules() if isinstance(layer, nn.Linear)]
    widest = max((layer.in_features + layer.out_features for layer in layers), default=0)
    encoding = getattr(field, "encoding", None)
    features = encoding.out_dim if encoding is not None else 0
    return BYTES_BESIDE + 4 * features + (2 if bfloat16 else 4) * widest


def memory_for_a_chunk(device: torch.device) -> int:
    """Bytes that a chunk may take."""
    if device.type != "cuda":
        return CPU_BYTES
    # PyTorch keeps what it has freed; the driver does not count that as free.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(int(GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + kept)), GPU_BYTES)


def rays_that_fit(bytes_per_ray: int, device: torch.device) -> int:
    """Rays of a chunk."""
    return min(max(memory_for_a_chunk(device) // bytes_per_ray, FEWEST), MOST)


def render_in_chunks(
    render: Callable[[RayBundle], Dict[str, Tensor]], rays: RayBundle, chunk: int, device: torch.device
) -> Dict[str, Tensor]:
    """Renders rays chunk by chunk, in smaller ones from where a GPU's memory runs out.

    Args:
        render: renders a bundle on the device: a value or several [rays, values] for each name.
        rays: of any shape [*], on any device.
        chunk: rays at once.
        device: the field's.
    Returns:
        What `render` returns, [*, values], on the rays' device.
    """
    shape, home = rays.shape, rays.origins.device
    rays = rays.flatten()
    parts: Dict[str, List[Tensor]] = defaultdict(list)
    begin = 0
    while begin < len(rays):
        try:
            outputs = render(rays[begin : begin + chunk].to(device))
        except torch.cuda.OutOfMemoryError:
            if chunk <= FEWEST:
                raise
            chunk = max(chunk // 2, FEWEST)
            continue
        for name, output in outputs.items():
            parts[name].append(output.to(home))
        begin += chunk
    return {name: torch.cat(some).view(*shape, -1) for name, some in parts.items()}
