"""Image quality: PSNR, SSIM and, if its weights are at hand, LPIPS (AlexNet)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Dict, Optional

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from nerfstudio.utils.rich_utils import CONSOLE


def image_metrics(
    image: Float[Tensor, "height width 3"],
    target: Float[Tensor, "height width 3"],
    mask: Optional[Bool[Tensor, "height width"]] = None,
) -> Dict[str, float]:
    """psnr (dB), ssim and, if AlexNet's weights are on this machine, lpips of an image with values in [0, 1].

    Args:
        image: the render.
        target: the photograph.
        mask: where pixels count. psnr is over these pixels, and ssim the mean of its map over them; for ssim and lpips
            the photograph stands in for the render elsewhere, as their windows reach across. Without a pixel that
            counts there are no metrics.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    if mask is not None:
        if not bool(mask.any()):
            return {}
        mask = mask.to(image.device)
        image = torch.where(mask[..., None], image, target)
    image, target = (value.detach().movedim(-1, 0)[None].float() for value in (image, target))
    counted = (image, target) if mask is None else (image[..., mask], target[..., mask])
    metrics = {"psnr": float(peak_signal_noise_ratio(*counted, data_range=1.0))}
    if min(image.shape[-2:]) >= 11:  # the window of SSIM
        ssim, similarities = structural_similarity_index_measure(image, target, data_range=1.0, return_full_image=True)
        metrics["ssim"] = float(ssim if mask is None else similarities[..., mask].mean())
    network = _lpips_network(str(image.device))
    if network is not None:
        with torch.no_grad():
            metrics["lpips"] = float(network(image.clamp(0, 1), target.clamp(0, 1)))
    return metrics


@functools.lru_cache(maxsize=None)
def _lpips_network(device: str) -> Optional[nn.Module]:
    """LPIPS as a module, built on first use; None if it would have to be downloaded."""
    weights = list((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet-*.pth"))
    if not weights:
        CONSOLE.print("LPIPS is left out: AlexNet's weights are not in torch's cache on this machine.")
        return None
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(device).eval()
