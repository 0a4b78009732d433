"""report.html: the figures of results.json, in sentences; one file, whatever lies in the folder."""

import dataclasses
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import torch
from safetensors.torch import load_file
from small_evaluations import Noisy, classifier

import robusttrain
from robusttrain.attacks import Linf, ProjectedGradient
from robusttrain.commands import report as command
from robusttrain.core.errors import UserError
from robusttrain.evaluation import Records, running
from robusttrain.evaluation.examples import Examples
from robusttrain.evaluation.report import Figure, Results, read_results
from robusttrain.evaluation.results import figure
from robusttrain.reporting import words
from robusttrain.reporting.comparison import compare, doubts
from robusttrain.reporting.comparison_page import write_page
from robusttrain.reporting.report import report, write_report
from robusttrain.reporting.runs import CLEAN, Run, read_run
from robusttrain.reporting.thumbnails import SIDE, panels
from robusttrain.storage.journal import Journal
from robusttrain.storage.weights import save_tensors

pytestmark = pytest.mark.filterwarnings("ignore")

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "div", "section"),
    *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre", "code", "figure"),
    *("figcaption", "strong", "span", "img", "svg", "g", "text", "line", "rect", "polygon"),
    *("polyline", "circle"),
}


class Reader(HTMLParser):
    """Tags, attributes and text of a page, as a browser sees them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.words = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    handle_startendtag = handle_starttag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def rewritten(folder, tmp_path, **changes):
    """A copy of an evaluation's folder whose results.json says something else."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    found = json.loads((copy / "results.json").read_text())
    (copy / "results.json").write_text(json.dumps(found | changes))
    return copy


def page_of(folder):
    return write_report(folder).read_text()


def safe(page):
    """Assert that a page runs nothing and fetches nothing."""
    read = Reader(page)
    assert read.tags <= TAGS, read.tags - TAGS
    for name, value in read.attributes:
        assert not name.startswith("on")
        assert name != "href"
        if name == "src":
            assert re.fullmatch(r"data:image/png;base64,[\w+/=]+", value)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_the_figures_are_those_of_results(folder):
    results, page = read_results(folder), (folder / "report.html").read_text()
    text = Reader(page).text
    figures = [results.clean, results.worst_case, *(row.robust for row in results.attacks.values())]
    figures += [Figure.of(row) for kind in results.json["curves"].values() for row in kind]
    for each in figures:
        assert str(each) in text
    right, left = (round(60 * each.accuracy) for each in (results.clean, results.worst_case))
    assert f"Of 60 images the model classifies {right} rightly." in text
    assert f"Under attack with changes of at most 0.05 (12.8/255) per pixel, {left} stay" in text
    for row in results.attacks.values():
        assert row.knows in text
    assert "the curve can only fall" in text
    assert results.json["command"] in text
    assert results.json["weights"] in text
    assert results.json["versions"]["torch"] in text
    assert "--audit false" in text


def test_the_evaluation_itself_attacks_what_fell_before(folder):
    """Its own point of a curve is no exception to its own figures."""
    attacked = {
        row["epsilon"]: row["attacked"] for row in read_run(folder).json["curves"]["epsilon"]
    }
    fell = attacked[0.05] - attacked[0.1]
    assert attacked[0.05] == attacked[2 / 255], "all that were right"
    assert fell > 0, "the case shows nothing"
    told = "own radius. At the others, an image that fell at a smaller one was not attacked again"
    assert told in Reader((folder / "report.html").read_text()).text


def test_each_class_has_the_figure_of_its_images(folder):
    run = read_run(folder)
    text = Reader((folder / "report.html").read_text()).text
    worst = run.score("worst case")
    assert worst.mean().item() == pytest.approx(run.results.worst_case.accuracy, abs=1e-6)
    for label in run.records.label.unique().tolist():
        here = worst[run.records.label == label]
        assert f"{100 * here.mean():.1f} % (" in text


def test_a_page_is_whole_and_alone(folder):
    page = (folder / "report.html").read_text()
    safe(page)
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert page.count("<img") == 3 * len(read_run(folder).examples[0])
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


EVIL = "\"><script>alert(1)</script><img src=x onerror=alert(2)>'&</style></title>"


def test_names_in_another_encoding_are_escaped(folder, tmp_path):
    """An old archive has folders, and so classes, in Latin-1."""
    there = shutil.copytree(folder, tmp_path / os.fsdecode(b"caf\xe9"))
    content = json.loads((there / "results.json").read_text())
    content["command"] = f"robusttrain evaluate --output {there}"
    (there / "results.json").write_text(json.dumps(content))
    page = write_report(there).read_text()
    assert r"/caf\udce9" in page
    run = read_run(there)
    write_page(run, [(run, compare(run, run))], tmp_path / "page.html")
    assert r"/caf\udce9" in (tmp_path / "page.html").read_text()


def test_names_from_elsewhere_run_nothing(folder, tmp_path):
    found = json.loads((folder / "results.json").read_text())
    finding = {
        **{"check": EVIL, "severity": EVIL, "measured": EVIL, "threshold": EVIL, "source": EVIL},
        **{"remedy": EVIL, "attack": EVIL, "value": None},
    }
    plan = found["plan"]
    plan["attacks"] = {EVIL: plan["attacks"]["fgsm"], "fgsm": plan["attacks"]["fgsm"]}
    attacks = {EVIL: found["attacks"]["fgsm"] | {"knows": EVIL}, "fgsm": found["attacks"]["fgsm"]}
    hostile = rewritten(
        folder,
        tmp_path,
        **{"target": EVIL, "data": EVIL, "command": EVIL, "weights": EVIL, "classes": [EVIL] * 10},
        **{"data_notes": [EVIL], "left_out": {EVIL: EVIL}, "versions": {EVIL: EVIL}},
        **{"processor": {EVIL: [EVIL]}, "plan": plan, "attacks": attacks, "audit": [finding]},
        precision={"attacks": {EVIL: EVIL, "fgsm": EVIL}},
        verdict=f"weak: {EVIL}",
        audit_images=8,
        audit_seconds=1.0,
        threat={"norm": EVIL, "epsilon": 0.05},
    )
    names = json.dumps([CLEAN, EVIL, "fgsm"])
    records = read_run(folder).records
    rows = dict(zip(json.loads(names), records.rows.values(), strict=True))
    Records(rows).save(hostile / "verdicts.safetensors")
    examples, _ = Examples.read(folder / "examples.safetensors")
    examples.save(hostile / "examples.safetensors", [EVIL, EVIL])
    page = page_of(hostile)
    safe(page)
    text = Reader(page).text
    assert text.count(EVIL) > 20
    assert "<script" not in page
    assert re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0].count("<") == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"images": "many"},
        {"clean": {"accuracy": "<b>", "ci95": [0, 1]}},
        {"clean": {"accuracy": 1.0}},
        {"threat": {"norm": "linf", "epsilon": "large"}},
        {"left_out": 3},
        {"indices": None},
        {"worst_case": {"robust_accuracy": 1e400, "ci95": [0, 1]}},
        {"audit": [{}], "verdict": "weak: x", "audit_images": 3},
        {"curves": {"epsilon": [{"epsilon": "x"}]}},
    ],
)
def test_damaged_results_are_one_line(folder, tmp_path, changes):
    copy = rewritten(folder, tmp_path, **changes)
    with pytest.raises(UserError, match=r"results\.json: is damaged") as caught:
        write_report(copy)
    assert "\n" not in str(caught.value)


def test_a_change_beyond_epsilon_is_told(folder, tmp_path):
    stayed = "All attacks stayed inside"
    assert stayed in Reader(page_of(folder)).text
    content = json.loads((folder / "results.json").read_text())
    epsilon, attacks = content["threat"]["epsilon"], content["attacks"]
    for by, told in ((1e-6, False), (0.01, True)):
        row = {**attacks["fgsm"], "largest_perturbation": epsilon + by}
        copy = rewritten(folder, tmp_path / str(by), attacks={**attacks, "fgsm": row})
        text = Reader(page_of(copy)).text
        assert (stayed not in text) == told
        assert ("Outside, by these figures: fgsm." in text) == told
        assert ("attack fgsm: its largest change in results.json is 0.06, and" in text) == told


def test_verdicts_of_images_beyond_epsilon_are_not_shown(folder, tmp_path):
    copy = rewritten(folder, tmp_path)
    records = read_run(copy).records
    records.of("fgsm").distance[3] += 0.01
    records.save(copy / "verdicts.safetensors")
    run = read_run(copy)
    assert run.records is None
    assert "does not give the figures of results.json" in run.missing[0]


def test_an_older_folder_gives_less_and_says_so(folder, tmp_path):
    copy = rewritten(folder, tmp_path, curves=None)
    for name in ("verdicts", "examples"):
        (copy / f"{name}.safetensors").unlink()
    text = Reader(page_of(copy)).text
    assert "verdicts.safetensors is not there, so nothing is said per class" in text
    assert "No image fell, or none was kept" in text
    assert "Per class" not in text.replace("per class", "")
    assert str(read_results(copy).worst_case) in text


@pytest.mark.parametrize("survivors", [False, True])
@pytest.mark.parametrize("place", ["clean", "fgsm", "fgsm, interval", "worst_case"])
def test_figures_that_somebody_changed_are_said(evaluated, tmp_path, place, survivors):
    """No figure can differ from the verdicts that it is the mean of."""
    made = evaluated(survivors=survivors)
    assert read_run(made).missing == ()
    found = json.loads((made / "results.json").read_text())
    row = found["attacks"]["fgsm"] if place.startswith("fgsm") else found[place]
    if place.endswith("interval"):
        row["ci95"][0] += 0.01
    else:
        row["accuracy" if place == "clean" else "robust_accuracy"] += 0.001
    copy = rewritten(made, tmp_path, **found)
    assert "the figures are not to be trusted" in Reader(page_of(copy)).text


@pytest.mark.parametrize(
    "said",
    [{"images": 20_000}, {"threat": {"norm": "linf", "epsilon": 8 / 255}}, {"draws": 1000}],
)
def test_images_and_radius_are_those_of_the_verdicts(folder, tmp_path, said):
    copy = rewritten(folder, tmp_path, **said)
    assert "the figures are not to be trusted" in Reader(page_of(copy)).text


@pytest.mark.parametrize(
    "said",
    [
        {"success_rate": 0.123},
        {"success_rate": None},
        {"success_rate_of": 1},
        {"largest_perturbation": 0.0},
        {"median_perturbation": 0.01},
        {"gradient_evaluations_per_image": 1.5},
        {"queries_per_image": 3.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("survivors", [False, True])
def test_success_change_and_cost_are_those_of_the_verdicts(evaluated, tmp_path, said, survivors):
    made = evaluated(survivors=survivors)
    attacks = json.loads((made / "results.json").read_text())["attacks"]
    copy = rewritten(made, tmp_path, attacks={**attacks, "fgsm": {**attacks["fgsm"], **said}})
    assert "the figures are not to be trusted" in Reader(page_of(copy)).text


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ([*"012345678"], "labels from 0 to 9, and results.json has 9 classes"),
        ([], "results.json has 0 classes"),
        ("0123456789", "results.json has no list of classes"),
    ],
    ids=str,
)
def test_classes_are_those_of_the_labels(folder, tmp_path, classes, told):
    copy = rewritten(folder, tmp_path, classes=classes)
    said = Reader(page_of(copy)).text
    assert told in said
    assert "the figures are not to be trusted" in said
    assert read_run(copy).records is None
    with pytest.raises(UserError, match=re.escape(told)):
        compare(read_run(folder), read_run(copy))


@pytest.mark.parametrize("attack", ["every", "fgsm"])
def test_labels_are_classes_and_the_same_for_every_attack(folder, tmp_path, attack):
    """No figure but those per class shows what class an image is of."""
    copy = rewritten(folder, tmp_path)
    rows = dict(read_run(copy).records.rows)
    for name in rows if attack == "every" else [attack]:
        label = rows[name].label.clone()
        label[3] = -1 if attack == "every" else (label[3] + 1) % 10
        rows[name] = dataclasses.replace(rows[name], label=label)
    Records(rows).save(copy / "verdicts.safetensors")
    run = read_run(copy)
    assert run.records is None
    assert "the figures are not to be trusted" in run.missing[0]
    assert ("labels from -1 to 9" in run.missing[0]) == (attack == "every")


def test_images_that_fell_have_the_classes_of_the_verdicts(folder, tmp_path):
    copy = rewritten(folder, tmp_path)
    examples, attacks = read_run(copy).examples
    other = dataclasses.replace(examples, label=(examples.label + 1) % 10)
    other.save(copy / "examples.safetensors", attacks)
    assert "examples.safetensors is of another evaluation" in Reader(page_of(copy)).text


def test_an_evaluation_that_began_since_and_has_not_ended_is_told(folder, tmp_path):
    copy = rewritten(folder, tmp_path)
    told = "began after results.json was written"
    assert told not in Reader(page_of(copy)).text
    Journal(copy / "journal", {"model": "another"})
    late = (copy / "results.json").stat().st_mtime + 5
    os.utime(copy / "journal" / "fingerprint.json", (late, late))
    assert told in Reader(page_of(copy)).text
    early = late - 10  # as where an evaluation's audit goes on
    os.utime(copy / "journal" / "fingerprint.json", (early, early))
    assert told not in Reader(page_of(copy)).text


def test_files_of_another_evaluation_are_not_shown(folder, evaluated, tmp_path):
    copy = rewritten(folder, tmp_path)
    other = evaluated(seed=1)
    for name in ("verdicts", "examples"):
        shutil.copy(other / f"{name}.safetensors", copy)
    text = Reader(page_of(copy)).text
    other_figures = "verdicts.safetensors does not give the figures of results.json"
    assert other_figures in text
    assert "examples.safetensors is of another evaluation" in text
    shutil.copy(evaluated(model=classifier(3)) / "verdicts.safetensors", copy)  # same images
    assert other_figures in Reader(page_of(copy)).text
    rows = read_run(folder).records.rows
    for broken in (
        {"score": rows["fgsm"].score.float()},
        {"select": rows["fgsm"].select[:, :0]},
        {"label": rows["fgsm"].label.double()[:, None].repeat(1, 2)},
    ):
        table = {name: dataclasses.replace(each, **broken) for name, each in rows.items()}
        Records(table).save(copy / "verdicts.safetensors")
        assert "Per class" not in Reader(page_of(copy)).text
    save_tensors(
        {**load_file(folder / "verdicts.safetensors"), "attack": torch.arange(3)},
        copy / "verdicts.safetensors",
        {"attacks": '["clean", "pgd-quick", "fgsm"]'},
    )
    assert "is damaged" in Reader(page_of(copy)).text
    for name in ("verdicts.safetensors", "examples.safetensors"):
        whole = (folder / name).read_bytes()
        for damaged in (b"no", b"", whole[:500]):  # nobody else has them: no "fetch it again"
            (copy / name).write_bytes(damaged)
            said = [line for line in read_run(copy).missing if line.startswith(str(copy / name))]
            assert said == [f"{copy / name}: is damaged, or another file: evaluate again"]
        assert "is damaged, or another file: evaluate again" in Reader(page_of(copy)).text


def test_a_thousand_classes_and_large_images_stay_below_two_megabytes(folder, tmp_path):
    classes, count = 1000, 5000
    copy = rewritten(folder, tmp_path, classes=[f"class number {i}" for i in range(classes)])
    found = json.loads((copy / "results.json").read_text())
    rows = {}
    for name, part in read_run(folder).records.rows.items():
        spread = part[torch.arange(count) % len(part)]
        rows[name] = dataclasses.replace(
            spread, index=torch.arange(count), label=torch.arange(count) % classes
        )
    Records(rows).save(copy / "verdicts.safetensors")
    whole = Run(copy, read_results(copy), Records(rows))
    found["indices"], found["images"] = list(range(count)), count
    found["clean"] |= figure(whole.score(CLEAN), "accuracy")
    found["worst_case"] |= figure(whole.score("worst case"))
    for name, row in found["attacks"].items():
        row |= figure(whole.score(name))
        reached = rows["clean"].chosen_by > 0.5
        row["success_rate_of"] = int(reached.sum())
        row["success_rate"] = 1 - rows[name].right[reached].mean().item()
        attacked = rows[name].attacked
        row["gradient_evaluations_per_image"] = rows[name].gradients[attacked].mean().item()
        row["queries_per_image"] = rows[name].queries[attacked].mean().item()
    (copy / "results.json").write_text(json.dumps(found))
    noise = torch.Generator().manual_seed(0)
    shape = (24, 3, 224, 224)
    Examples(
        *(torch.arange(24), torch.arange(24), torch.zeros(24, dtype=torch.long)),
        *(torch.full((24,), 0.05), torch.randint(256, shape, generator=noise).to(torch.uint8)),
        (0.1 * torch.rand(shape, generator=noise) - 0.05).half(),
        *(torch.arange(24), torch.arange(24) + 1),
    ).save(copy / "examples.safetensors", ["pgd-quick", "fgsm"])
    page = page_of(copy)
    assert len(page.encode()) < 2_000_000
    assert "class number 999" in page
    assert page.count("<img") > 30
    safe(page)


def test_pictures_show_the_change_by_its_factor():
    levels = torch.full((1, 4, 4), 128, dtype=torch.uint8)
    change = torch.zeros(1, 4, 4)
    change[0, 0, 0] = -0.05
    shown, factor = panels(levels, change)
    assert factor == pytest.approx(10)
    assert len({*shown}) == 3
    assert panels(levels, torch.zeros(1, 4, 4))[1] == 0
    large, _ = panels(torch.zeros(3, 500, 300, dtype=torch.uint8), torch.zeros(3, 500, 300))
    assert len(large[0]) < SIDE * SIDE * 4
    panels(torch.zeros(4, 8, 8, dtype=torch.uint8), torch.full((4, 8, 8), torch.nan))


def test_examples_are_images_that_fell_whatever_the_batches(folder, evaluated):
    examples, attacks = Examples.read(folder / "examples.safetensors")
    run = read_run(folder)
    assert attacks == ["pgd-quick", "fgsm"]
    fell = (run.score(CLEAN) == 1) & (run.score("worst case") == 0)
    assert len(examples) == min(24, int(fell.sum())) > 3
    assert {*examples.index.tolist()} <= {*run.records.index[fell].tolist()}
    assert torch.equal(examples.before, examples.label)
    assert (examples.after != examples.label).all()
    assert (examples.change.float().abs().amax((1, 2, 3)) <= 0.0501).all()
    torch.testing.assert_close(
        examples.change.float().abs().amax((1, 2, 3)), examples.distance, atol=1e-3, rtol=0
    )
    other, _ = Examples.read(evaluated(batch_size=7, save_images=True) / "examples.safetensors")
    assert torch.equal(other.index, examples.index)
    assert torch.equal(other.images, examples.images)


def test_an_answer_that_names_no_class_is_told_so(folder, tmp_path):
    """Of -1, the class of NaN, a reader of "class -1" would make a class."""
    copy = rewritten(folder, tmp_path)
    examples, attacks = Examples.read(copy / "examples.safetensors")
    nameless = dataclasses.replace(examples, after=torch.full_like(examples.after, -1))
    nameless.save(copy / "examples.safetensors", attacks)
    text = Reader(page_of(copy)).text
    assert "\N{RIGHTWARDS ARROW} no class" in text
    assert "class -1" not in text


def test_evaluations_from_python_have_a_report(tmp_path):
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    settings = {"attacks": "fgsm", "audit": False, "progress": False, "output": tmp_path}
    robusttrain.evaluate(classifier(), images, labels, **settings)
    assert "Of 8 images the model classifies" in (tmp_path / "report.html").read_text()


def test_what_was_doubted_before_it_began_stands_on_the_page(tmp_path):
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    short = ProjectedGradient(steps=2, step_size=0.01, threat=Linf(0.1))
    settings = {"audit": False, "progress": False}
    with pytest.warns(UserWarning, match="its steps together reach"):
        robusttrain.evaluate(
            classifier(), images, labels, attacks={"pgd": short}, output=tmp_path, **settings
        )
    (line,) = json.loads((tmp_path / "results.json").read_text())["doubts"]
    assert line.startswith("pgd: its steps together reach 0.02 of the radius 0.1")
    text = Reader((tmp_path / "report.html").read_text()).text
    assert f"Said before it began: {line}." in text
    run = read_run(tmp_path)
    assert words.doubtful(run.results)
    assert f"{tmp_path}: Said before it began: {line}." in [*doubts(run, run)]


def test_a_random_model_is_told_by_its_draws(evaluated, tmp_path):
    folder = evaluated(model=Noisy(classifier()), curve=[0.1])
    text = Reader((folder / "report.html").read_text()).text
    assert "on average over 4 draws of its randomness" in text
    assert "each image is scored over 4 draws that no attack has seen" in text
    assert "may rise a little by the luck of the draws" in text
    assert "can only fall" not in text
    # Shares of draws are no verdicts of a model that always answers the same.
    assert "the figures are not to be trusted" in page_of(rewritten(folder, tmp_path, random=False))


def test_means_of_the_cost_say_of_which_images(evaluated):
    """An attack is not given images that are wrong without it, and a curve's cost is over all."""
    folder = evaluated(model=classifier(2), curve=[0.01])
    content = json.loads((folder / "results.json").read_text())
    asked = [row["gradient_evaluations_per_image"] for row in content["attacks"].values()]
    spent = [row["gradient_evaluations"] for row in content["curves"]["epsilon"]]
    wrong = content["images"] * (1 - content["clean"]["accuracy"])
    assert wrong > 10
    assert spent[-1] == pytest.approx((content["images"] - wrong) * sum(asked), abs=1)
    text = Reader((folder / "report.html").read_text()).text
    assert f"the evaluation itself included {sum(spent) / content['images']:,.4g}" in text
    assert "means over the images that it was given, a curve's over all images" in text


def test_without_verdicts_nothing_of_an_earlier_run_stays(evaluated):
    folder = evaluated(save_verdicts=False)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {"journal", "report.html", "results.json"}


def test_killed_before_the_audit_the_report_says_what_is_missing(evaluated, monkeypatch):
    folders = []

    def killed(*arguments):
        raise KeyboardInterrupt

    def noting(folder):
        folders.append(folder)
        return write_report(folder)

    monkeypatch.setattr("small_evaluations.write_report", noting)
    monkeypatch.setattr(running, "finish_audit", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluated(attacks=["fgsm"], images=30, audit=True, audit_images=8)
    text = Reader((folders[-1] / "report.html").read_text()).text
    assert "its audit is missing, as it was stopped before" in text
    assert "Per class" in text


def made(**changes):
    """The results of the example in docs/report.md."""
    figures = {
        "clean": {"accuracy": 0.829, "ci95": [0.80, 0.85]},
        "worst_case": {"robust_accuracy": 0.447, "ci95": [0.416, 0.478]},
    }
    found = {
        **figures,
        **{"images": 1000, "random": False, "draws": 1, "verdict": "sound", "audit_checks": 16},
        "threat": {"norm": "linf", "epsilon": 8 / 255},
        "audit": [
            {"check": name, "severity": severity}
            for name, severity in (("a", "not run"), ("b", "not run"), ("c", "note"))
        ],
        **changes,
    }
    plan = dataclasses.make_dataclass("Plan", ["audit"])(True)
    parts = (Figure.of(found["clean"]), {"pgd": None}, Figure.of(found["worst_case"]))
    return Results(*parts, plan, found)


def test_the_verdict_in_sentences():
    assert " ".join(words.verdict(made())) == (
        "Of 1,000 images the model classifies 829 rightly. Under attack with changes of at most"
        " 8/255 per pixel, 447 stay right (95 % sure: between 416 and 478). The evaluation itself"
        " looks sound: 14 checks passed, 2 could not run."
    )
    weak = made(
        verdict="weak: b",
        audit=[{"check": "b\x1b[2J", "severity": "weak"}, {"check": "b", "severity": "not run"}],
    )
    assert words.verdict(weak)[-1].startswith("The figure is probably too high")
    assert "\x1b" not in words.verdict(weak)[-1]
    masked = made(verdict="masked: a", audit=[{"check": "a", "severity": "masked"}])
    assert words.verdict(masked)[-1].startswith("Do not rely on this figure")
    assert "Checks that say so: a; 15 checks passed." in words.verdict(masked)[-1]
    # Where nothing is left, no better attack can break more.
    nothing = {"worst_case": {"robust_accuracy": 0.0, "ci95": [0.0, 0.004]}}
    for kind in ("weak", "masked"):
        fallen = made(verdict=f"{kind}: a", audit=[{"check": "a", "severity": kind}], **nothing)
        assert words.verdict(fallen)[-1] == (
            "Nothing stays right, so no other attack breaks more; but the audit found faults."
            " Checks that say so: a; 15 checks passed."
        )
        assert words.doubtful(fallen)
    older = made(audit_checks=0, audit=[])
    assert words.verdict(older)[-1] == "The audit found no fault in the evaluation."
    one = made(images=1, worst_case={"robust_accuracy": 1.0, "ci95": [0.2, 1.0]})
    assert words.verdict(one)[0].startswith("Of 1 image the model")
    assert "1 stays right" in words.verdict(one)[1]


def test_a_model_that_is_hardly_ever_right_is_told(folder, tmp_path):
    low = {"clean": {"accuracy": 0.12, "ci95": [0.08, 0.18]}, "classes": [*"abcdefghij"]}
    chance = words.verdict(made(**low))
    assert chance[2].startswith("Clean accuracy is 12.0 %, no better than chance (10.0 % of 10")
    assert words.doubtful(made(**low))
    other = {"explains": True, "accuracy": 0.9, "held_out_accuracy": 0.88, "order": [*"jihgfedcba"]}
    ordered = words.verdict(made(**low, other_class_order=other))
    assert ordered[3] == (
        "Clean accuracy is 12.0 %, and another order of the classes explains it: with j, i, h, g,"
        " f, e, d, c, b, a it would be 90.0 % (judged on images that did not choose it: 88.0 %)."
    )
    luck = words.verdict(made(**low, other_class_order={**other, "explains": False}))
    assert luck == chance
    values = {"values": "from 0 to 255", "accuracy": 0.95}
    rescaled = words.verdict(made(**low, other_pixel_values=values))
    assert "other pixel values explain it: with values from 0 to 255" in rescaled[2]
    assert len(rescaled) == len(chance) == len(words.verdict(made())) + 1
    assert words.verdict(made(classes=[*"abcdefghij"])) == words.verdict(made())
    text = Reader(page_of(rewritten(folder, tmp_path, other_pixel_values=values, **low))).text
    assert "other pixel values explain it" in text


@pytest.mark.parametrize(
    ("epsilon", "norm", "told"),
    [
        (8 / 255, "linf", "8/255"),
        (0.031, "linf", "0.031 (7.91/255)"),
        (0.5, "l2", "0.5"),
        (15 / 255, "rmsd", "15/255"),
        (0, "linf", "0"),
    ],
)
def test_radii_as_they_are_written(epsilon, norm, told):
    assert words.radius(epsilon, norm) == told


def test_the_command_writes_and_says(folder, capsys):
    (folder / "report.html").unlink()
    command.run([str(folder)])
    said = capsys.readouterr().err
    assert "Of 60 images the model classifies" in said
    assert (folder / "report.html").is_file()
    for arguments, told in (([], "name a folder"), (["--x"], "takes folders alone")):
        with pytest.raises(UserError, match=told):
            command.run(arguments)
    with pytest.raises(UserError, match="cannot be read"):
        command.run([str(folder / "none")])


def test_repeat_it_names_the_folder_wherever_one_stands(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert f"--again {folder.name}/results.json" in report(read_run("."))


def test_repeat_it_names_code_of_ones_own(folder, tmp_path):
    """Nobody runs it because a report says so, so the command has no --trust."""
    assert "adds --trust" not in report(read_run(folder))
    plan = json.loads((folder / "results.json").read_text())["plan"]
    plan["model"] = {"class_path": "/home/a b/net.py:Net", "init_args": {}}
    plan["defense"] = {"class_path": "x.py:A", "init_args": {"inner": {"class_path": "net.py:B"}}}
    page = Reader(report(read_run(rewritten(folder, tmp_path, plan=plan)))).text
    told = "It runs code of net.py, x.py: whoever has it and trusts it adds --trust FILE to that."
    assert told in page
    assert "/home/a b" not in page.partition("Repeat it")[2].partition("Versions")[0]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("robusttrain evaluate", "--checkpoint 'runs/a b.ckpt' --images 30 --audit_images 8"),
        ("python evaluate.py --images=30", "--checkpoint 'runs/a b.ckpt' --audit_images 8"),
        ("robusttrain evaluate --checkpoint 'runs/a b.ckpt'", None),
        ("robusttrain evaluate --config mine.yaml", None),
        ("python study.py", None),
    ],
)
def test_repeat_it_names_the_checkpoint_that_was_the_newest(command, told, folder, tmp_path):
    """After another training the same command attacks that one."""
    plan = json.loads((folder / "results.json").read_text())["plan"]
    plan |= {"checkpoint": "runs/a b.ckpt", "images": 30, "audit_images": 8}
    copy = rewritten(folder, tmp_path, plan=plan, command=command)
    page = Reader(report(read_run(copy))).text
    line = "It names no checkpoint, and takes the newest whenever it runs. Then this was: "
    assert f"{line}{told}" in page if told else line not in page
