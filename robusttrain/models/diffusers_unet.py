"""Diffusion models of Hugging Face's diffusers, from a folder on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robusttrain.core.errors import OptionError, UserError, first_line
from robusttrain.models.noise_predictor import NoisePredictor

#: What diffusers calls its files.
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"


class DiffusersUNet(NoisePredictor):
    """A ``UNet2DModel`` with the noise levels of its scheduler, for the defense `Diffusion`.

    Needs ``pip install "robusttrain[diffusers]"``. Nothing is downloaded, and weights are read from
    safetensors only.

    Args:
        folder: a pipeline's (``unet/`` and ``scheduler/`` inside) or a model's, with
            ``scheduler_config.json`` beside ``config.json``.
    """

    brings_weights = True

    def __init__(self, folder: str) -> None:
        try:
            import diffusers
        except ImportError as error:
            raise UserError(
                'DiffusersUNet needs diffusers: pip install "robusttrain[diffusers]"'
            ) from error
        whole = Path(folder)
        places = [place for place in (whole / "unet", whole) if (place / WEIGHTS).is_file()]
        levels = [place for place in (whole / "scheduler", whole) if (place / SCHEDULER).is_file()]
        for files, name in ((places, WEIGHTS), (levels, SCHEDULER)):
            if not files:
                raise OptionError(
                    "folder", folder, f"there is no {name} in it (a pickle is not read)"
                )
        local: dict[str, Any] = {"local_files_only": True}
        try:
            scheduler = diffusers.DDPMScheduler.from_pretrained(str(levels[0]), **local)
            unet = diffusers.UNet2DModel.from_pretrained(
                str(places[0]), use_safetensors=True, **local
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise OptionError("folder", folder, f"diffusers: {first_line(error)}") from error
        if (kind := scheduler.config.prediction_type) != "epsilon":
            raise OptionError("folder", folder, f"its model predicts {kind!r}, not the noise")
        super().__init__(torch.as_tensor(scheduler.alphas_cumprod))
        self.unet, self.in_channels = unet, int(unet.config.in_channels)

    def forward(self, noisy: Tensor, level: Tensor) -> Tensor:
        # diffusers counts noise levels from 0. Some models predict variances behind the noise.
        output: Tensor = self.unet(noisy, level - 1).sample
        return output[:, : noisy.shape[1]]
