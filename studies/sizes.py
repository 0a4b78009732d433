"""The three sizes of every study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from robusttrain.core.errors import UserError
from studies.scales import Scale

SILENT = ("--robust.every", "0", "--pictures.images", "0")

SMOKE = Scale(
    name="smoke",
    about="a check that everything runs, on digits: its figures mean nothing",
    data=("--data", "digits", "--data.batch_size", "64"),
    model=("--model", "resnet_small", "--model.widths", "[8, 16, 16]", "--model.blocks", "1"),
    recipe="standard",
    f_b_recipe="f_b",
    epochs=1,
    f_b_epochs=1,
    f_b_steps=7,
    inner_steps=2,
    more=(*SILENT, "--trainer.enable_progress_bar", "false"),
    short=("--trainer.limit_train_batches", "8"),
    short_images=512,
    train_images=1_350,
    images=16,
    draws=2,
    steps=2,
    attack=("--attack.steps", "2"),
    eot=("--attack", "bpda-eot", "--attack.bpda-eot.gradient.draws", "2"),
    f_b_width=16,
)

SMALL = Scale(
    name="small",
    about="CIFAR-10 (JPEG), f_a a ResNet of 0.7 M parameters, f_b in bfloat16 inside g",
    data=("--data", "imagefolder"),
    model=("--model", "resnet_small"),
    recipe="standard",
    f_b_recipe="f_b",
    epochs=3,
    f_b_epochs=3,
    f_b_steps=7,
    inner_steps=5,
    more=(*SILENT, "--data.validation", "0.02"),
    short=("--trainer.limit_train_batches", "128"),
    short_images=128 * 128,
    train_images=49_000,
    images=100,
    draws=4,
    steps=13,
    attack=(),
    eot=("--attack", "bpda-eot", "--attack.bpda-eot.gradient.draws", "5"),
    precision="bfloat16",
)

PAPER = Scale(
    name="paper",
    about="the paper's settings: CIFAR-10, ResNet-18, 80 epochs of SGD at a constant rate of 0.1",
    data=("--data", "cifar10"),
    model=("--model", "resnet18"),
    recipe="paper",
    f_b_recipe="f_b-paper",
    epochs=80,
    f_b_epochs=20,
    f_b_steps=20,
    inner_steps=10,
    more=SILENT,
    short=(),
    short_images=45_000,
    train_images=45_000,
    images=1_000,
    draws=10,
    steps=13,
    attack=(),
    eot=("--attack", "bpda-eot-paper"),
)

SCALES = {scale.name: scale for scale in (SMOKE, SMALL, PAPER)}


def on_imagenet(scale: Scale, folder: str) -> Scale:
    """The scale on ImageNet's validation images, with models that come with their weights.

    Raises:
        UserError: the folder is not there, or the scale makes do with embedded digits.
    """
    if scale.name == "smoke":
        raise UserError(
            f"--imagenet {folder}: scale smoke makes do with embedded digits; leave it out"
        )
    if not Path(folder).is_dir():
        raise UserError(f"--imagenet {folder}: no such folder")
    about = "ImageNet's validation images at 224 pixels, models as they were published"
    data = ("--data", "imagenet", "--data.root", Path(folder))
    return replace(scale, about=about, data=data, model=("--model", "efficientnet_lite0"))


def placed(scale: Scale, root: str | None, f_b: str | None) -> Scale:
    """The scale with the user's own files.

    Raises:
        UserError: a file or folder is not there, missing where it is needed, or given where it
            means nothing.
    """
    for option, value in (("--root", root), ("--f_b", f_b)):
        if value is not None and scale.name == "smoke":
            raise UserError(
                f"{option} {value}: scale smoke makes do with embedded digits; leave it out"
            )
    if root is None and "imagefolder" in scale.data:
        raise UserError(
            "--root: scale small needs CIFAR-10 as an image folder, DIR/train/<class> and"
            " DIR/test/<class>"
        )
    if root is not None:
        if not Path(root).is_dir():
            raise UserError(f"--root {root}: no such folder")
        scale = replace(scale, data=(*scale.data, "--data.root", Path(root)))
    if f_b is not None:
        if not Path(f_b).is_file():
            raise UserError(f"--f_b {f_b}: no such file")
        scale = replace(scale, f_b=Path(f_b))
    return scale
