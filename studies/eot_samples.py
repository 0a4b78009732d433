"""Figure 7: do more draws of g make EOT a stronger attack.

BPDA-I with EOT of 1 to 500 draws a step, at Delta 0.1 and 0.2. Xiao & Zheng 2020, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from robusttrain.commands.entry import main
from robusttrain.reporting import lines
from studies.study import NOT_AVAILABLE, Study


@dataclass(frozen=True)
class Settings:
    """Draws, test images, and the preset whose draws are changed."""

    draws: tuple[int, ...]
    images: int
    preset: str


RADII = (0.1, 0.2)
SETTINGS = {
    "smoke": Settings((1, 2), 16, "bpda-eot"),
    "small": Settings((1, 5, 20, 50), 50, "bpda-eot"),
    "paper": Settings((1, 10, 50, 100, 200, 300, 400, 500), 1_000, "bpda-eot-paper"),
}


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("eot_samples", __doc__, arguments)
    scale, settings = study.scale, SETTINGS[study.scale.name]
    models = {radius: scale.ours(radius) for radius in RADII}
    results = study.run(
        {
            f"Delta {radius:g}, {draws} draws": scale.attacked(
                model, settings.preset, {"gradient.draws": draws}, images=settings.images
            )
            for radius, model in models.items()
            for draws in settings.draws
        }
    )

    rows = []
    series: dict[str, list[tuple[float, float]]] = {f"Delta {radius:g}": [] for radius in RADII}
    for draws in settings.draws:
        row: list[object] = [draws]
        for radius in RADII:
            point = results[f"Delta {radius:g}, {draws} draws"]
            row.append(point.only.robust)
            series[f"Delta {radius:g}"].append((draws, (point.only.robust.accuracy or 0)))
        rows.append((*row, NOT_AVAILABLE))
    clean = {
        radius: results[f"Delta {radius:g}, {settings.draws[0]} draws"].clean for radius in RADII
    }
    columns = ("draws a step", *(f"BPDA-I with EOT, Delta {radius:g}" for radius in RADII), "paper")
    notes = (
        f"{settings.images:,} images. Clean: "
        + ", ".join(f"{accuracy} at Delta {radius:g}" for radius, accuracy in clean.items())
        + ". The paper says: at Delta 0.1 more draws help up to about 100, at 0.2 they do not.",
    )
    study.write(columns, rows, lines(series, "draws a step", log=True), notes)


if __name__ == "__main__":
    main(run)
