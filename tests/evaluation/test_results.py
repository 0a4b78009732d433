"""Results: the form of results.json, and writing it."""

import io
import json
import os
from dataclasses import dataclass, field

import pytest
import torch
from rich.console import Console
from torch import nn

import robusttrain
from robusttrain.attacks import Attack, Cost, Linf, ProjectedGradient, Target
from robusttrain.core.errors import UserError
from robusttrain.evaluation import Engine, Scenario, results, table
from robusttrain.storage.files import laid_out, may_write, writable, write_json


@pytest.fixture
def found(images, linear):
    model = linear(scale=1.0)
    scenario = Scenario(
        ProjectedGradient(steps=2, relative_step_size=0.5, threat=Linf(0.05)), Target()
    )
    engine = Engine(model, {"pgd": scenario})
    records, _ = engine.run(images(20), torch.arange(20) % 3, torch.arange(20))
    return results(records, engine, {"pgd": 1.234})


def test_the_form_of_results(found):
    assert list(found) == [
        "threat",
        "seed",
        "images",
        "draws",
        "random",
        "survivors",
        "clean",
        "attacks",
        "worst_case",
        "audit",
    ]
    assert found["threat"] == {"norm": "linf", "epsilon": 0.05}
    assert found["images"] == 20
    assert set(found["clean"]) == {"accuracy", "ci95"}
    assert set(found["attacks"]["pgd"]) >= {
        "robust_accuracy",
        "ci95",
        "success_rate",
        "largest_perturbation",
        "gradient_evaluations_per_image",
        "queries_per_image",
        "seconds",
        "knows",
    }
    assert found["attacks"]["pgd"]["seconds"] == 1.23
    assert json.loads(json.dumps(found)) == found
    low, high = found["clean"]["ci95"]
    assert low < found["clean"]["accuracy"] < high


def test_no_image_was_right(images, linear):
    model = linear()
    engine = Engine(model, {"pgd": Scenario(ProjectedGradient(steps=1, step_size=0.1), Target())})
    records, seconds = engine.run(images(), (model(images()).argmax(1) + 1) % 3, torch.arange(4))
    found = results(records, engine, seconds)
    assert found["attacks"]["pgd"]["success_rate"] is None
    assert found["attacks"]["pgd"]["gradient_evaluations_per_image"] == 0
    assert found["worst_case"]["robust_accuracy"] == 0
    table(found)


def test_the_median_change_of_two_images_lies_between_them():
    @dataclass(frozen=True)
    class Darker(Attack):
        """Takes as much light from an image as its own pixels say."""

        threat: Linf = field(default_factory=lambda: Linf(0.6))

        def cost(self):
            return Cost(0, 0)

        def run(self, source, images, labels, rng):
            return 0 * images

    class Lit(nn.Module):
        def forward(self, images):
            light = images.mean((1, 2, 3)) - 0.05
            return torch.stack([-light, light], 1)

    lit = torch.tensor([0.1, 0.5])[:, None, None, None].expand(-1, 1, 4, 4).clone()
    engine = Engine(Lit(), {"darker": Scenario(Darker(), Target())})
    records, _ = engine.run(lit, torch.ones(2, dtype=torch.int64), torch.arange(2))
    row = results(records, engine, {})["attacks"]["darker"]
    assert (row["success_rate"], row["largest_perturbation"]) == (1, 0.5)
    assert row["median_perturbation"] == pytest.approx(0.3)


def test_the_table_names_every_attack_and_the_threat(found):
    shown = table(found)
    assert "linf 0.05" in shown.title
    assert list(shown.columns[0].cells) == ["none (clean)", "pgd", "worst case"]


def test_square_brackets_in_names_are_no_markup(found):
    attacks = {f"pgd[{name}]": found["attacks"]["pgd"] for name in ("long", "/short")}
    shown = table({**found, "target": "runs[v2]/best.pth", "attacks": attacks})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(shown)
    said = console.export_text()
    for name in ("runs[v2]/best.pth", "pgd[long]", "pgd[/short]"):
        assert name in said


def test_results_are_replaced_whole(found, tmp_path):
    for seed in (0, 1):
        write_json({**found, "seed": seed}, tmp_path / "results.json")
    assert json.loads((tmp_path / "results.json").read_text())["seed"] == 1
    assert os.listdir(tmp_path) == ["results.json"]


def test_folders_are_proved_writable(tmp_path):
    assert writable(tmp_path / "a" / "b", "--output").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--output .*file/below: cannot be written to \(.+\)"):
        writable(tmp_path / "file" / "below", "--output")


@pytest.mark.parametrize("below", ["", "inside"])
def test_a_folder_that_cannot_be_is_told_at_once(tmp_path, below):
    """A link to a disk that is not there, or to itself; a name that is too long."""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "there")
    with pytest.raises(UserError, match=r"^--output .*link is a link to .*there, which leads now"):
        may_write(tmp_path / "link" / below, "--output")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=r"^--output .*loop is a link to .*loop, which leads now"):
        may_write(tmp_path / "loop" / below, "--output")
    with pytest.raises(UserError, match=r"^--output .*xxx.*: cannot be written to \(.+\)"):
        may_write(tmp_path / ("x" * 300) / below, "--output")
    (tmp_path / "good").symlink_to(tmp_path)
    assert may_write(tmp_path / "good" / "out", "--output") == tmp_path / "good" / "out"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"a": []},
        {"a": 1, "b": None, "c": "a, b: {\n}", "ü": [True, float("inf")]},
        {
            "numbers": list(range(300)),
            "table": [{"name": "x" * 50, "value": 0.5, "row": [1] * 60}] * 3,
        },
        {"long": "x" * 300, "deep": {"x": {"long": "y" * 300, "list": [[0.1] * 40] * 3}}},
        {1: {2: [0.5] * 99}, None: {True: "x" * 170}},
        [[1, 2], [], {}],
    ],
)
def test_json_for_readers_is_the_same_json(value):
    text = laid_out(value)
    assert text.splitlines() == [line.rstrip() for line in text.splitlines()]
    assert json.dumps(json.loads(text)) == json.dumps(json.loads(json.dumps(value)))
    texts = [line for line in text.splitlines() if "xx" not in line and "yy" not in line]
    assert max(map(len, texts)) <= 160


def test_json_for_readers_is_short():
    found = {
        "attacks": {"pgd": {"ci95": [0.25, 0.75]}},
        "table": [{"a": "x" * 90, "b": "y" * 90, "c": 1}] * 2,
    }
    assert laid_out({**found, "draws": list(range(60))}).splitlines() == [
        "{",
        ' "attacks": {"pgd": {"ci95": [0.25, 0.75]}},',
        ' "table": [',
        f'  {{"a": "{"x" * 90}",',
        f'   "b": "{"y" * 90}", "c": 1}},',
        f'  {{"a": "{"x" * 90}",',
        f'   "b": "{"y" * 90}", "c": 1}}',
        " ],",
        f' "draws": [{", ".join(map(str, range(39)))},',
        f"  {', '.join(map(str, range(39, 60)))}]",
        "}",
    ]


def test_a_folder_that_cannot_be_written_to_is_told(images, linear, tmp_path):
    x, y = images(2), torch.tensor([0, 1])
    made = robusttrain.evaluate(linear(), x, y, attacks="fgsm", audit=False, progress=False)
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UserError, match="folder"):
        made.save(tmp_path / "file")
    made.save(tmp_path / "new" / "folder")
    assert robusttrain.read_results(tmp_path / "new" / "folder").clean == made.clean


def test_validation_images_from_python_are_named_as_such():
    """A figure on images that may have been trained on is not that of the test split."""
    data = robusttrain.data.Digits()
    data.attack_validation()
    options = {"attacks": "fgsm", "count": 8, "audit": False, "progress": False}
    found = robusttrain.evaluate(robusttrain.load("digits-standard"), data, **options).json
    assert found["data"] == "Digits (validation split)"
    assert any("is not known" in line for line in found["data_notes"])
