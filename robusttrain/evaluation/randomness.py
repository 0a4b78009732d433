"""What the attacker knows of a random model's randomness: three threats, three figures.

- *unknown*: the attacker commits to an image, and a fresh draw judges it. The figure is a mean over
  draws that no attack has seen.
- *tries*: the attacker submits an image k times, and wins if one of k fresh draws falls. Other
  images for some of the tries gain nothing: the draws are independent, so all tries belong to the
  image that falls most often.
- *known*: the attacker is given the draw that will judge the image ("deterministic white box",
  arXiv 2404.14309). `robusttrain.evaluation.beside.known_draw` attacks so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from robusttrain.evaluation.records import CLEAN, Records
from robusttrain.evaluation.report import Figure
from robusttrain.evaluation.results import figure
from robusttrain.evaluation.scoring import worst_case


def all_right(score: Tensor, tries: int) -> Tensor:
    """The probability that a model is right in all of ``tries`` draws, (n,) float64.

    With c of d draws right, C(c, k) / C(d, k) is the share of k-subsets that are right throughout:
    the estimate without bias, which (c / d) ** k is not.

    Args:
        score: (n, d) bool, verdicts on d draws.
        tries: k, at most d.
    """
    draws, right = score.shape[1], score.double().sum(dim=1)
    share = torch.ones_like(right)
    for used in range(tries):
        share *= ((right - used) / (draws - used)).clamp_min(0)
    return share


def under_tries(records: Records, tries: int) -> tuple[Tensor, Tensor]:
    """Scores of all images, clean and in the worst case, if each may be tried so often: (n,) each.

    The image that an attacker tries is chosen on the draws that select.
    """
    rows = records.rows.values()
    select = torch.stack([each.chosen_by for each in rows])
    score = torch.stack([all_right(each.score, tries) for each in rows])
    return all_right(records.of(CLEAN).score, tries), worst_case(select, score)


def _row(clean: Tensor, worst: Tensor) -> dict[str, Any]:
    return {"clean": figure(clean, "accuracy"), "worst_case": figure(worst)}


def randomness(
    content: Mapping[str, Any], records: Records, tries: int | None, with_draw: Records | None
) -> dict[str, Any] | None:
    """The figures of the three threats for results.json; None for a deterministic model.

    Args:
        content: of results.json.
        records: of an attacker who does not know the draw.
        tries: k; None for as many as there are draws.
        with_draw: of an attacker who knows it; None if nobody asked.
    """
    if not content["random"] or not len(records):
        return None
    tries = tries or records.of(CLEAN).score.shape[1]
    rows = {
        "unknown": {name: content[name] for name in ("clean", "worst_case")},
        "tries": {"tries": tries, **_row(*under_tries(records, tries))},
    }
    if with_draw is not None:
        rows["known"] = _row(with_draw.of(CLEAN).right, with_draw.worst)
    return rows


def threats(content: Mapping[str, Any]) -> list[tuple[str, Figure, Figure]]:
    """The rows of results.json that `randomness` made: in words what the attacker knows, the
    accuracy without an attack, and that in the worst case.
    """
    rows: Mapping[str, Any] = content["randomness"]
    draws = f"unknown: mean of {content['draws']} draws that no attack has seen"
    about = {
        "unknown": draws,
        "tries": f"{rows['tries']['tries']} tries: one draw that falls suffices",
        "known": "known: the attacker has the draw that scores",
    }
    return [
        (about[name], Figure.of(row["clean"]), Figure.of(row["worst_case"]))
        for name, row in rows.items()
    ]


def randomness_table(content: Mapping[str, Any]) -> Table:
    """The three threats as a table for the terminal."""
    shown = Table(title="what the attacker knows of the model's randomness", title_justify="left")
    shown.add_column("randomness")
    shown.add_column("clean (95 %)", justify="right")
    shown.add_column("worst case (95 %)", justify="right")
    for about, clean, worst in threats(content):
        shown.add_row(about, str(clean), str(worst))
    if "known" not in content["randomness"]:
        shown.caption = "--known_draw true adds the row of an attacker who knows the draw"
    return shown
