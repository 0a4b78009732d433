"""Memory: how much a model needs for a backward pass, and how much a device has left."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from robusttrain.attacks import call_model, prepared
from robusttrain.core.rng import Rng


def bytes_per_image(model: nn.Module, images: Tensor) -> int:
    """Bytes that one more image keeps for the backward pass with respect to the images, in
    evaluation mode.

    Args:
        model: images to logits.
        images: (B, C, H, W), at least two.
    """
    held = []
    for count in (1, 2):
        seen: dict[int, int] = {}

        def note(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        rng = Rng.for_images(0, torch.arange(count, device=images.device))
        with prepared(model), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            points = images[:count].clone().requires_grad_()
            # The logits hold all storage until it is counted; freed storage could be counted again
            # at the same address.
            logits = call_model(model, points, rng)
            held.append(sum(seen.values()))
            del logits
    # The difference leaves out the weights, which do not grow with the batch.
    return max(held[1] - held[0], images[0].numel() * images.element_size())


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(
            1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
        )
        limit = Path("/sys/fs/cgroup/memory.max")
        if limit.is_file() and (text := limit.read_text().strip()) != "max":
            free.append(int(text) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError, StopIteration):
        pass
    return min(free, default=None)
