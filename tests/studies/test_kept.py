"""What was measured on one machine is not measured again on the next."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from robusttrain.core.errors import UserError
from robusttrain.evaluation.plan import EvaluationPlan
from robusttrain.reporting import bars
from robusttrain.running import jobs
from robusttrain.running.jobs import Call, Job
from robusttrain.storage.files import write_json
from studies import converged, does_g_add, test_time_defenses
from studies.kept import LAST, without_places
from studies.study import Study

ROOT = Path(__file__).parents[2]
#: What plans know data/cifar10-jpeg by, a hash of the names and sizes of its files; and the
#: released f_b, by its content.
CIFAR10_JPEG = "dc1e599e5ec816add23937d93039d5ce832674b87b45f68001c8ca64fe80e616"
RELEASED = "671cdb44bc3b96b1a88242c63c59c08b827c4ed98438f3810f3cb936da7e94dc"
pytestmark = pytest.mark.filterwarnings("ignore")


def doubled(number):
    return {"twice": 2 * number}


def measured(number):
    raise AssertionError(f"{number} was measured again")


measured.__name__ = doubled.__name__


@pytest.fixture
def study(tmp_path):
    """Makes one whose files lie in a folder of their own."""

    def make(folder, *arguments):
        root = tmp_path / folder
        places = {"output": root, "checkpoints": root / "models", "logs": root / "logs"}
        options = [f"--{name}={place}" for name, place in places.items()]
        return Study("radius", "Kept", [*options, *map(str, arguments)])

    return make


@pytest.fixture
def kept(study):
    """The points.zip of a study of two points."""
    first = study("first")
    first.run({f"{number}": Call(doubled, {"number": number}) for number in (1, 2)})
    first.write(("a",), [(1,)], bars({"a": 1.0}, "a"))
    return first.output / "points.zip"


def test_points_of_an_earlier_run_are_taken_from_its_file(study, kept, capsys):
    found = study("second", "--earlier", kept).run(
        {
            "1": Call(measured, {"number": 1}),
            "2": Call(measured, {"number": 2}),
            "3": Call(doubled, {"number": 3}),
        }
    )
    assert found == {"1": {"twice": 2}, "2": {"twice": 4}, "3": {"twice": 6}}
    assert "2 points of 3 from" in capsys.readouterr().err


def test_a_point_of_other_settings_is_measured(study, kept):
    found = study("second", "--earlier", kept).run({"1": Call(doubled, {"number": 5})})
    assert found == {"1": {"twice": 10}}


def test_what_was_measured_here_stays(study, kept):
    second = study("second")
    second.run({"1": Call(doubled, {"number": 1})})
    (folder,) = (second.output / "points").glob("*/")
    write_json({"found": {"twice": 7}, "seconds": 0}, folder / "done.json")
    again = study("second", "--earlier", kept)
    assert again.run({"1": Call(measured, {"number": 1})}) == {"1": {"twice": 7}}


def test_an_evaluation_comes_with_the_verdict_of_each_image(study):
    first = study("first")
    target = first.scale.ours()
    plan = first.scale.attacked(target, "pgd", images=4, known_draw=True)
    first.run({"pgd": plan})
    first.write(("a",), [(1,)], bars({"a": 1.0}, "a"))
    second = study("second", "--earlier", first.output / "points.zip")
    second.run({"pgd": plan})
    assert torch.equal(second.worst_cases("pgd"), first.worst_cases("pgd"))
    (theirs,), (ours,) = ((each.output / "points").glob("*/") for each in (first, second))
    name = "known_draw-verdicts.safetensors"
    assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    results = (theirs / "results.json").read_bytes()
    assert (ours / "results.json").read_bytes() == without_places(results)
    assert not [*(second.output / "models").iterdir()]


def test_the_same_points_make_the_same_file(study, kept):
    second = study("second", "--earlier", kept)
    second.run({f"{number}": Call(measured, {"number": number}) for number in (1, 2)})
    second.write(("a",), [(1,)], bars({"a": 1.0}, "a"))
    assert (second.output / "points.zip").read_bytes() == kept.read_bytes()


def test_nothing_but_the_points_of_the_study_is_read(study, kept, tmp_path):
    with zipfile.ZipFile(kept, "a") as archive:
        archive.writestr("../stray.json", "{}")
        first = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{first}/../../../stray.json", "{}")
        archive.writestr(f"{first}/code.py", "")
        archive.writestr("other-0123456789ab/done.json", "{}")
    second = study("second", "--earlier", kept)
    second.run({"1": Call(measured, {"number": 1})})
    assert len([*(second.output / "points").glob("*/")]) == 1
    assert not [*tmp_path.rglob("stray.json"), *tmp_path.rglob("code.py")]


@pytest.mark.parametrize("damage", ["no zip", "cut", "flipped"])
def test_a_damaged_file_is_one_line(study, kept, damage):
    content = bytearray(kept.read_bytes())
    if damage == "flipped":
        content[content.index(b"done.json") + 40] ^= 255
    half = content[: len(content) // 2]
    kept.write_bytes({"no zip": b"text", "cut": half, "flipped": content}[damage])
    second = study("second", "--earlier", kept)
    with pytest.raises(UserError, match=f"--earlier {kept}: cannot be read"):
        second.run({"1": Call(doubled, {"number": 1})})


def test_a_zip_does_not_say_where_things_lay(study, tmp_path):
    """It is handed on: of a path there stays what plans know a file by."""
    text = (
        '{"checkpoint": "/far/away/f_b-0123456789ab/last.ckpt", "share": "8/255 or 1 / 2",\n'
        ' "command": "python /here/studies/x.py --earlier /there/docs/points.zip --root data/c"}'
    )
    expected = (
        '{"checkpoint": "f_b-0123456789ab/last.ckpt", "share": "8/255 or 1 / 2",\n'
        ' "command": "python studies/x.py --earlier docs/points.zip --root data/c"}'
    )
    assert without_places(text.encode()) == expected.encode()


def test_a_missing_file_is_said_at_once(study, tmp_path):
    with pytest.raises(UserError, match="--earlier .*nowhere.zip: no such file"):
        study("second", "--earlier", tmp_path / "nowhere.zip")


@pytest.mark.parametrize(
    ("module", "kept"),
    [
        (does_g_add, "does_g_add-digits-points.zip"),
        (test_time_defenses, "test_time_defenses-digits-points.zip"),
        (converged, "converged-digits-points.zip"),
    ],
)
def test_studies_find_what_the_docs_keep(module, kept, tmp_path, monkeypatch, capsys):
    """The same command, with a preset or an option of today: where this fails, the page's figures
    are those of another plan, and `--earlier` gives nothing.
    """

    def enough(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("studies.study.carry_out", enough)
    # They are counted here; that they are laid out, file by file, other tests see.
    monkeypatch.setattr("studies.kept.write_whole", lambda path, content: None)
    monkeypatch.chdir(tmp_path)
    kept = ROOT / "docs/results/studies" / kept
    with pytest.raises(KeyboardInterrupt):
        module.run(["--scale", "digits", "--earlier", str(kept)])
    found, _ = capsys.readouterr().err.split(" point", 1)
    assert int(found.split()[-1]) > 0


@pytest.mark.parametrize(
    "kept", sorted((ROOT / "docs/results/studies").glob("*-points.zip")), ids=lambda kept: kept.stem
)
def test_points_that_the_docs_keep_are_found_by_their_plans(kept, monkeypatch):
    """A point is known by a fingerprint of its plan. An option that comes later, and changes no
    figure as long as nobody gives it, must not change the plans of before
    (`robusttrain.evaluation.plan.LATER`): else `--earlier` gives nothing, and hours are spent anew.
    """

    def folder(root):
        return CIFAR10_JPEG if root.name == "cifar10-jpeg" else listed(root)

    def file(name):
        return RELEASED if name.endswith("vgg-small-adversarial-cifar10.pth") else hashed(name)

    listed, hashed = jobs._folder, jobs._file
    monkeypatch.setattr(jobs, "_folder", folder)  # the images need not be here ...
    monkeypatch.setattr(jobs, "_file", file)  # ... nor the released f_b
    checked = 0
    with zipfile.ZipFile(kept) as archive:
        for name in archive.namelist():
            folder, _, file = name.partition("/")
            if file != LAST:
                continue
            account = json.loads(archive.read(name))
            if "attacks" not in account["work"]:  # what a function measured
                continue
            plan = EvaluationPlan.from_json(account["work"])
            assert Job(account["label"], plan, Path()).name == folder
            checked += 1
    assert checked
