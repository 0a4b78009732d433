"""Section 4.1, appendix A.2: reparameterization.

A fully convolutional h is trained towards g on natural images; does its error on test images stay
high, and does an attack on f_a(h(x)) fool f_a(g(x))? Xiao & Zheng 2020, sections 3.3 and 4.1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robusttrain.config.command_line import main
from studies import report
from studies.parts import Point, Training
from studies.scales import Scale
from studies.study import Study

#: Epochs of h, and options of its training.
SETTINGS = {
    "smoke": (1, ("--h.width", "8", "--h.depth", "1", "--trainer.enable_progress_bar", "false")),
    "small": (3, ("--h.width", "32")),
    "paper": (80, ()),
}
#: Of what train.py measures: h, the best function of x (the variance of g's draws), and x itself,
#: which BPDA-I takes.
ERRORS = (("error", "h"), ("floor", "the best possible h"), ("identity", "h(x) = x"))


def h(scale: Scale) -> Training:
    """The attacker's h, trained towards the g of our model."""
    epochs, options = SETTINGS[scale.name]
    how = ("--training", "reparameterization", "--checkpoint", scale.ours(), *options, *scale.short)
    return Training("h", how, epochs, scale.short_images, steps=scale.steps)


def errors(arguments: list[str]) -> dict[str, Any]:
    """What train.py measured of h."""
    return dict(
        json.loads(Path(arguments[arguments.index("--h") + 1]).with_suffix(".json").read_text())
    )


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("reparameterization", __doc__, arguments)
    scale = study.scale
    attack = ("--attack", "reparameterization", "--attack.reparameterization.source.path", h(scale))
    found = study.run(
        [
            Point("attack", scale.attacked(scale.ours(), *attack)),
            Point("errors", ("--h", h(scale)), errors),
        ]
    )

    point, fit = found["attack"], found["errors"]
    told = {
        f"{split} images: {what}": fit[f"{split}_{name}"]
        for split in ("train", "test")
        for name, what in ERRORS
    }
    paper = {"train images: h": "low (no value given)", "test images: h": "high (no value given)"}
    rows = [
        (f"mean squared error, {name}", f"{value:.5f}", paper.get(name, "-"))
        for name, value in told.items()
    ]
    rows.append(("clean accuracy of f_a(g(x))", report.clean(point), "82.9 %"))
    rows.append(
        ("accuracy under the attack on f_a(h(x))", report.robust(point), "within 1 % of clean")
    )
    columns = ("figure", "ours", "paper")
    notes = (
        (
            f"h: {' '.join(map(str, SETTINGS[scale.name][1])) or 'the preset'},"
            f" {SETTINGS[scale.name][0]} epochs. Errors are means over pixel values and images."
        ),
    )
    report.write(
        study,
        found,
        columns,
        rows,
        report.bars(told, "h(x) beside g(x)", "mean squared error"),
        notes,
    )


if __name__ == "__main__":
    main(run)
