"""A checkpoint that is carried over to other images: what belongs to an image goes with it, what is new begins.

Light at import, as the rest of this room.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence

from hashpose_ns.errors import HashPoseError

Rows = List[Optional[int]]
"""For each image now: its row in a checkpoint, None if it is new."""


def rows_of_images(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Rows:
    """Where the images now are among those that a checkpoint was trained on: by what the files hold, else by their
    names, where one image only has the name.

    Args:
        saved: the checkpoint's fingerprint, see `hashpose_ns.data.fingerprint`.
        now: that of the images now.

    Raises:
        HashPoseError: the checkpoint has no fingerprint, or none of its images is among these.
    """
    if "image_digests" not in saved:
        raise HashPoseError(
            "The checkpoint does not say which images it was trained on, so nothing can be carried over to others; "
            "give the same images, or retrain."
        )
    rows: Rows = [None] * len(now["image_digests"])
    for key in ("image_digests", "image_names"):
        if key not in saved or key not in now:
            continue
        before, after = saved[key].tolist(), now[key].tolist()
        free = [row for row in range(len(before)) if row not in set(rows)]
        places: Dict[int, List[int]] = {}
        for row in free:
            places.setdefault(before[row], []).append(row)
        wanted = [value for image, value in enumerate(after) if rows[image] is None]
        for image, value in enumerate(after):
            found = places.get(value, [])
            if rows[image] is None and len(found) == 1 and wanted.count(value) == 1:
                rows[image] = found[0]
    if all(row is None for row in rows):
        raise HashPoseError("None of the images that the checkpoint was trained on is among these; retrain.")
    return rows


def is_changed(rows: Sequence[Optional[int]], count: int) -> bool:
    """Whether they are other images, or come in another order, than the `count` ones of a checkpoint."""
    return list(rows) != list(range(count))


def carried(value: Any, rows: Sequence[Optional[int]], new: Any, dimension: int = 0) -> Any:
    """A tensor with a row per image, for the images now.

    Args:
        value: the checkpoint's.
        rows: of each image now.
        new: a tensor with the values of new images, of the shape that comes out; other rows are not looked at.
        dimension: which one of the tensor's the rows are.
    """
    result, source = new.to(value).clone().movedim(dimension, 0), value.movedim(dimension, 0)
    known = [image for image, row in enumerate(rows) if row is not None]
    result[known] = source[[rows[image] for image in known]]
    return result.movedim(0, dimension).contiguous()


def carry_moments(
    saved: Dict[str, Any], optimizers: Mapping[str, Any], parameters: Mapping[Any, int], rows: Sequence[Optional[int]]
) -> None:
    """Carries over what optimizers remember of parameters with a row per image, in place; nothing of new ones.

    Args:
        saved: a checkpoint's optimizers.
        optimizers: the run's, by name.
        parameters: those parameters of the run, and which dimension the rows are.
        rows: of each image now.
    """
    import torch

    for name, optimizer in optimizers.items():
        moments = saved.get(name, {}).get("state", {})
        ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(ordered):
            if parameter not in parameters:
                continue
            for moment, value in moments.get(index, {}).items():
                if value.ndim == parameter.ndim:  # all but the count of steps
                    new = torch.zeros(parameter.shape)
                    moments[index][moment] = carried(value, rows, new, parameters[parameter])
