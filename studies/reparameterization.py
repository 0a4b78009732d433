"""Section 4.1, appendix A.2: reparameterization.

A fully convolutional h is trained towards g on natural images; does its error on test images stay
high, and does an attack on f_a(h(x)) fool f_a(g(x))? Xiao & Zheng 2020, sections 3.3 and 4.1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robusttrain.commands.entry import main
from robusttrain.config.reparameterization import configure
from robusttrain.core.console import say
from robusttrain.reporting import bars
from robusttrain.running.jobs import Call
from robusttrain.running.reparameterization import train_configured
from studies.scales import Scale, Settings, typed
from studies.study import Study

#: Epochs of h, and options of its training.
SETTINGS: dict[str, tuple[int, Settings]] = {
    "smoke": (1, {"h.width": 8, "h.depth": 1, "trainer.enable_progress_bar": False}),
    "small": (3, {"h.width": 32}),
    "paper": (80, {}),
}
#: Of what train.py measures: h, the best function of x (the variance of g's draws), and x itself,
#: which BPDA-I takes.
ERRORS = (("error", "h"), ("floor", "the best possible h"), ("identity", "h(x) = x"))


def h(scale: Scale) -> str:
    """Weights of the attacker's h, trained towards the g of our model."""
    epochs, options = SETTINGS[scale.name]
    settings = {**options, **scale.short, "trainer.max_epochs": epochs}
    about = {"checkpoint": scale.ours().checkpoint, "settings": settings}
    return scale.asked("h", Call(train_h, about, {"folder": None})).weights


def train_h(folder: Path, checkpoint: str, settings: Settings) -> dict[str, Any]:
    """What train.py measures of h, whose weights stay in ``folder``."""
    weights = folder / "weights.safetensors"
    said = typed({**settings, "checkpoint": checkpoint, "output": str(weights)})
    train_configured(configure(said), say)
    return errors(str(weights))


def errors(weights: str) -> dict[str, Any]:
    """What train.py measured of h."""
    return dict(json.loads(Path(weights).with_suffix(".json").read_text()))


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("reparameterization", __doc__, arguments)
    scale = study.scale
    results = study.run(
        {
            "attack": scale.attacked(scale.ours(), "reparameterization", {"source.path": h(scale)}),
            "errors": Call(errors, {"weights": h(scale)}),
        }
    )

    point, fit = results["attack"], results["errors"]
    errors_by_name = {
        f"{split} images: {what}": fit[f"{split}_{name}"]
        for split in ("train", "test")
        for name, what in ERRORS
    }
    paper = {"train images: h": "low (no value given)", "test images: h": "high (no value given)"}
    rows: list[tuple[object, ...]] = [
        (f"mean squared error, {name}", f"{value:.5f}", paper.get(name, "-"))
        for name, value in errors_by_name.items()
    ]
    rows.append(("clean accuracy of f_a(g(x))", point.clean, "82.9 %"))
    rows.append(
        (
            "accuracy under the attack on f_a(h(x))",
            point.only.robust,
            "within 1 % of clean",
        )
    )
    columns = ("figure", "ours", "paper")
    notes = (
        (
            f"h: {' '.join(typed(SETTINGS[scale.name][1])) or 'the preset'},"
            f" {SETTINGS[scale.name][0]} epochs. Errors are means over pixel values and images."
        ),
    )
    study.write(
        columns,
        rows,
        bars(errors_by_name, "h(x) beside g(x)", "mean squared error"),
        notes,
    )


if __name__ == "__main__":
    main(run)
