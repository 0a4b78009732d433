"""The figures of one attack: success rates from each maker to each target."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch

from robusttrain.transfer.crafting import Outcome
from robusttrain.transfer.estimates import Estimate, Matrix
from robusttrain.transfer.predictions import every_model_right
from robusttrain.transfer.success import matching_matrix, success_matrix


def measure(
    outcomes: dict[str, Outcome], labels: torch.Tensor, clean: dict[str, torch.Tensor]
) -> dict[str, Matrix]:
    """The matrices of one attack: success, and for targeted attacks matching, top-1 and top-5."""
    of = every_model_right(clean, labels)
    answers = {maker: each.classes for maker, each in outcomes.items()}
    tops = [top for top in (1, 5) if top <= next(iter(clean.values())).shape[2]]
    measured = {f"success_top{top}": success_matrix(answers, labels, of, top) for top in tops}
    goals = {maker: each.goals for maker, each in outcomes.items() if each.goals is not None}
    for top in tops if goals else ():
        # Each source may strive for another class (its least likely one), so each row has its own
        # goals.
        rows = [
            matching_matrix({maker: answers[maker]}, labels, goals[maker], of, top)
            for maker in goals
        ]
        cells = {maker: row for matrix in rows for maker, row in matrix.cells.items()}
        measured[f"matching_top{top}"] = Matrix(rows[0].title, of.words, cells)
    return measured


def part_of_results(outcomes: dict[str, Outcome], measured: dict[str, Matrix]) -> dict[str, Any]:
    """One attack's part of results.json; evaluations are those of an image, averaged over
    makers.
    """
    asked = list(outcomes.values())
    return {
        **{kind: matrix.json() for kind, matrix in measured.items()},
        "rmsd": {
            maker: Estimate.mean(each.distances["rmsd"]).json() for maker, each in outcomes.items()
        },
        "gradient_evaluations_per_image": round(fmean(each.gradients for each in asked), 2),
        "queries_per_image": round(fmean(each.queries for each in asked), 2),
        "seconds": {maker: round(each.seconds, 1) for maker, each in outcomes.items()},
        "knows": "the source and the labels, of other targets nothing",
    }
