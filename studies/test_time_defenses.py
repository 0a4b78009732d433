"""What defenses at test time are worth: each in front of base models, against the base itself.

Ten defenses that need no training of their own (but for g's f_b) stand before a model of standard
and one of adversarial training, or before one that comes with the package. All were trained without
them: crops are larger, and g's radius is smaller, than where a network is trained behind them.
Their papers' protocol is transfer: the attack on the classifier alone. The adaptive suite goes
through, around and without each defense, and attacks the base model at the same budget (Croce et
al. 2022). What the attacker knows of the draw is a column of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from torch import Tensor

from robusttrain.commands.entry import main
from robusttrain.config.checkpoints import read_recipe
from robusttrain.config.evaluation import read_plan
from robusttrain.evaluation.paired import Difference, compared, in_points
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.evaluation.records import CLEAN, Records
from robusttrain.evaluation.report import Figure, Results
from robusttrain.reporting.canvas import canvas
from studies.scales import EPSILON, Scale, Settings, typed
from studies.study import Study

#: By name: the options of a defense; g's are the scale's, and hedge searches within the radius of
#: the threat. Of a side, 80 % are left of crops: of the paper's 40 %, a network that never saw any
#: recognises nothing.
DEFENSES: Mapping[str, Settings] = {
    "JPEG (Guo 2018)": {"defense": "jpeg"},
    "bit depth (Xu 2018)": {"defense": "bit-depth"},
    "median (Xu 2018)": {"defense": "median"},
    "total variation (Guo 2018)": {"defense": "total-variation"},
    "crops (Guo 2018)": {
        "defense": "crop-rescale",
        "defense.defense.share": 0.8,
        "defense.draws": 10,
    },
    "random resizing (Xie 2018)": {"defense": "randomization"},
    "vote over resizing (Xie 2018)": {"defense": "vote", "defense.draws": 10},
    "g (Xiao 2020)": {},
    "anti-adversary (Alfarra 2022)": {"defense": "anti-adversary"},
    "hedge (Wu 2021)": {"defense": "hedge"},
}
#: The presets' layers are for images of 32 pixels; embedded digits have 16.
LAYERS = {"low": 14, "canvas": 16}
SIXTEEN: Mapping[str, Settings] = {
    "random resizing (Xie 2018)": {f"defense.{key}": value for key, value in LAYERS.items()},
    "vote over resizing (Xie 2018)": {
        f"defense.defense.{key}": value for key, value in LAYERS.items()
    },
}
#: Those that show that the study runs: with a twin and without randomness, and with everything.
SMOKE = ("JPEG (Guo 2018)", "g (Xiao 2020)")
#: What each scale asks of the suite, by attack.
EFFORT: Mapping[str, Settings] = {
    "smoke": {
        **{f"{name}.steps": 2 for name in ("wt", "apgd-ce", "apgd-margin", "eot", "bpda-twin")},
        **{f"{name}.steps": 2 for name in ("bpda-i", "bpda-i-margin", "bpda-eot")},
        **{f"{name}.gradient.draws": 2 for name in ("eot", "bpda-i-margin", "bpda-eot")},
        "square-quick.queries": 24,
        "square-quick.votes": 2,
    },
    "digits": {"eot.gradient.draws": 10, "square-quick.votes": 4},
    "small": {"eot.gradient.draws": 10, "square-quick.votes": 4},
    "paper": {},
}
#: Radius of the threat: twice the paper's on digits, which are easier than photographs.
RADIUS = {"digits": 0.062}
#: The quick suite overstates what a defense adds by up to 16 points (JPEG on digits).
SUITES = {"smoke": "test-time-quick", "paper": "test-time"}
#: Of the figure: marker, colour and name of each protocol.
STYLES = {
    "transfer": ("o", "tab:blue", "its paper's protocol"),
    "adaptive": ("s", "tab:orange", "adaptive suite"),
}


def options(scale: Scale, name: str) -> Settings:
    """Of a defense at this scale; g stays within the radius of the threat."""
    if not DEFENSES[name]:
        return scale.g() | {"defense.radius": radius(scale)}
    if DEFENSES[name]["defense"] == "hedge":
        return {**DEFENSES[name], "defense.radius": radius(scale)}
    sixteen = scale.data["data"] == "digits"
    return {**DEFENSES[name], **(SIXTEEN.get(name, {}) if sixteen else {})}


def radius(scale: Scale) -> float:
    """Of the threat."""
    return RADIUS.get(scale.name, EPSILON)


def packaged(name: str) -> Settings:
    """Options of a packaged model that has no defense."""
    node = read_recipe(name)["model"]
    values = {key: to for key, to in node["init_args"].items() if to is not None}
    options = {f"model.{key}": to for key, to in values.items()}
    return {"model": node["class_path"], **options, "weights": name}


def point(scale: Scale, base: Settings, defense: Settings) -> EvaluationPlan:
    """A base model behind a defense, under the suite."""
    settings = {
        **scale.data,
        **base,
        **defense,
        "suite": SUITES.get(scale.name, "test-time-autoattack"),
        **{f"attack.{key}": value for key, value in EFFORT[scale.name].items()},
        "epsilon": radius(scale),
        "images": scale.images,
        "draws": scale.draws,
        "audit": False,
    }
    return read_plan(typed(settings))


def transfer(records: Records) -> Tensor:
    """(n,): each image's score under the attack on the classifier alone, if it hurts more than no
    attack.
    """
    return Records({name: records.of(name) for name in (CLEAN, "wt")}).worst


def row(
    base: str, defense: str, results: Results, records: Records, adds: Difference
) -> dict[str, Any]:
    """The figures of a point; ``adds``: what its verdicts say that the defense adds. An earlier
    version, which measured it, may have had another interval.
    """
    content = results.json
    bare, random = content["bare_classifier"], content["randomness"]
    clean = bare["added"]["clean"]
    return {
        "base model": base,
        "defense": defense,
        "clean, with the defense": results.clean,
        "its paper's protocol: transfer": Figure.over(transfer(records)),
        "adaptive": results.worst_case,
        "k tries": (
            f"{Figure.of(random['tries']['worst_case'])}, k = {random['tries']['tries']}"
            if random
            else ""
        ),
        "known draw": Figure.of(random["known"]["worst_case"]) if random else "",
        "base model, same budget": Figure.of(bare["worst_case"]),
        "base model, all attacks": Figure.of(bare.get("beyond", bare)["worst_case"]),
        "the defense adds": adds.points,
        "adds to clean": in_points(clean["difference"], None, None),
    }


def run(arguments: list[str]) -> None:
    """Run the study."""
    study = Study("test_time_defenses", __doc__, arguments, "digits", "base")
    scale = study.scale
    bases = (
        {study.base: packaged(study.base)}
        if study.base
        else {
            how: {**scale.model, "weights": scale.f_a(how).weights}
            for how in ("standard", "adversarial")
        }
    )
    names = SMOKE if scale.name == "smoke" else DEFENSES
    defenses = {name: options(scale, name) for name in names}
    points = {
        f"{base}: {name}": point(scale, model, defense)
        for base, model in bases.items()
        for name, defense in defenses.items()
    }
    results = study.run(points)
    rows, differences = [], {}
    for base in bases:
        for name in defenses:
            label = f"{base}: {name}"
            records = results[label].records
            folder = study.points[label].folder
            alone = Records.read(folder / "bare_classifier-verdicts.safetensors")
            beyond = results[label].json["bare_classifier"].get("beyond", {}).get("attacks", ())
            alone = alone.under([name for name in alone.attacks if name not in beyond])
            random = bool(results[label].json["random"])
            differences[label] = {
                "transfer": compared(alone.worst, transfer(records), label, random),
                "adaptive": compared(alone.worst, records.worst, label, random),
            }
            adds = differences[label]["adaptive"]
            rows.append(row(base, name, results[label], records, adds))
    columns = list(rows[0])
    table = [[str(cell) for cell in each.values()] for each in rows]
    notes = (
        "'The defense adds' is the paired difference, by image, between the adaptive worst case and"
        " that of the base model at the same budget of gradient evaluations, with its 95 %"
        " interval. All attacks: with those that a random defense rules out (AutoAttack). Transfer"
        " is the attack on the classifier alone, as the defenses' own papers"
        " have it.",
    )
    head = f"{scale.images} test images, {scale.draws} draws for an image's score."
    titles = {base: base if study.base else f"{base} training" for base in bases}
    study.write(columns, table, drawn(differences, titles), notes, head, radius(scale))


def drawn(differences: Mapping[str, Mapping[str, Any]], bases: Mapping[str, str]) -> Picture:
    """What each protocol says that a defense adds to its base model, with intervals.

    Args:
        differences: by base model and defense, then by protocol.
        bases: titles of the base models.
    """
    figure = canvas(7, 1 + 0.35 * len(differences))
    panels = figure.subplots(len(bases), sharex=True, squeeze=False)[:, 0]
    for axes, (base, title) in zip(panels, bases.items(), strict=True):
        head = f"{base}: "
        shown = {
            key.removeprefix(head): each
            for key, each in differences.items()
            if key.startswith(head)
        }
        for kind, shift in (("transfer", 0.15), ("adaptive", -0.15)):
            _points(axes, [each[kind] for each in shown.values()], kind, shift)
        axes.axvline(0, color="grey", linewidth=1)
        axes.set_yticks([-number for number in range(len(shown))], [*shown])
        axes.set_title(f"base model: {title}", fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    above = {"loc": "lower right", "bbox_to_anchor": (1, 1.1)}  # beside no interval
    panels[0].legend(fontsize="small", ncols=2, borderaxespad=0, **above)
    panels[-1].set_xlabel("points added to the base model under attack, with 95 % intervals")
    return figure


def _points(axes: Axes, differences: Sequence[Any], kind: str, shift: float) -> None:
    means = [100 * each.mean for each in differences]
    ends = [
        [100 * (each.mean - each.low) for each in differences],
        [100 * (each.high - each.mean) for each in differences],
    ]
    heights = [shift - number for number in range(len(differences))]
    marker, colour, name = STYLES[kind]
    axes.errorbar(means, heights, xerr=ends, fmt=marker, color=colour, label=name, capsize=2)


if __name__ == "__main__":
    main(run)
