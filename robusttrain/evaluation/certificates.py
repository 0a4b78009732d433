"""The certificates of results.json in words, and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from robusttrain.evaluation.report import Figure


def finding(content: Mapping[str, Any]) -> str | None:
    """In a sentence, that attacks broke certificates; None where they did not, or nobody asked."""
    certificates = content.get("certificates")
    if not certificates or not certificates["violations"]:
        return None
    broken = certificates["violations"]
    worst = min(broken, key=lambda each: each["distance"] - each["radius"])
    luck = certificates["alpha"] * (content["images"] + certificates["judged"])
    return (
        f"The certificates are void: of {content['images']} images {len(broken)} were broken within"
        f" their certified radius (image {worst['index']} of radius {worst['radius']:g} at a"
        f" distance of {worst['distance']:g}, by {worst['attack']}); luck explains {luck:.2g} of"
        f" them at most. Is sigma = {certificates['sigma']:g} that of the noise, and does nothing"
        " come before the noise? Rounding can void a certificate as well (arXiv 2207.07209)."
    )


def about(certificates: Mapping[str, Any]) -> str:
    """What the figures are about, in sentences."""
    norm, reach = certificates["attacks"]["norm"], certificates["attacks"]["radius"]
    sentences = [
        "Both figures are about the smoothed classifier, the vote over infinitely many draws of"
        f" noise (sigma {certificates['sigma']:g}), and bound what stays right of it: certificates"
        f" from below (each wrong with a probability of {certificates['alpha']:g} at most), attacks"
        " from above.",
        f"{certificates['draws']:,} draws decide, and certify no radius above"
        f" {certificates['largest_radius']:.3g}; {certificates['abstained']:,} images have no"
        " certificate.",
        "Undecided: the draws show neither that an adversarial image is classified rightly nor that"
        " it is not; it counts as left.",
    ]
    if norm is None:
        sentences.append("Nothing was attacked.")
    elif norm != "l2":
        sentences.append(
            f"The attacks have the threat {norm}: each adversarial image counts at its Euclidean"
            f" length, {reach:.3g} at most. --attack eot-l2 attacks what certificates are about."
        )
    return " ".join(sentences)


def certificates_table(content: Mapping[str, Any]) -> Table:
    """Certified accuracy over the radius, beside what attacks leave, for the terminal."""
    certificates = content["certificates"]
    shown = Table(
        title="certificates: accuracy within a Euclidean radius",
        title_justify="left",
        caption=about(certificates),
        caption_justify="left",
    )
    for head in ("radius", "certified (95 %)", "left by attacks (95 %)", "undecided"):
        shown.add_column(head, justify="right")
    for point in certificates["points"]:
        left = point["attacked"]
        shown.add_row(
            f"{point['radius']:g}",
            str(Figure.of(point["certified"])),
            "-" if left is None else str(Figure.of(left)),
            "-" if left is None else f"{left['undecided']:,}",
        )
    return shown
