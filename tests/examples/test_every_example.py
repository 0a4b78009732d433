"""The examples run as they stand, and print what their pages say that they print."""

import json
import re
import runpy
from pathlib import Path

import pytest

from robusttrain.core.errors import OptionError

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def printed(capsys):
    """Runs an example as ``python examples/NAME`` does; what it prints, as text by name of line."""

    def run(name: str) -> dict[str, str]:
        path = EXAMPLES / name
        if path.suffix == ".ipynb":
            cells = json.loads(path.read_text())["cells"]
            space: dict[str, object] = {"__name__": "__main__"}
            for cell in cells:
                if cell["cell_type"] == "code":
                    exec(compile("".join(cell["source"]), f"{name}, {cell['id']}", "exec"), space)
        else:
            runpy.run_path(str(path), run_name="__main__")
        lines = [line for line in capsys.readouterr().out.splitlines() if ": " in line]
        return dict(line.split(": ", 1) for line in lines)

    return run


def percent(text: str) -> float:
    return float(re.match(r"([\d.]+) %", text)[1])


def test_pgd(printed):
    found = printed("pgd.py")
    right = [percent(each) for each in found.values()]
    assert list(found) == ["no attack", *(f"PGD within {n}/255" for n in (8, 16, 32))]
    assert right[0] > 85
    assert right == sorted(right, reverse=True)
    assert right[-1] < right[0] / 2


def test_bpda_eot(printed):
    found = {name.partition(",")[0]: percent(each) for name, each in printed("bpda_eot.py").items()}
    assert found["no attack"] > 75
    # Going around g breaks what an attack on f_a alone leaves.
    assert found["BPDA-I"] < found["PGD on f_a alone"] < found["no attack"]
    assert found["BPDA-I with EOT"] < found["PGD on f_a alone"]


def test_own_defense(printed):
    found = printed("own_defense.py")
    clean, through = percent(found["no attack"]), percent(found["PGD through the rounding"])
    # Rounding has no gradient: PGD through it finds nothing, and the suite finds nearly all.
    assert through == clean > 85
    assert percent(found["worst case of the suite"]) < through / 2


def test_a_defense_in_an_example_refuses_what_cannot_work():
    quantise = runpy.run_path(str(EXAMPLES / "own_defense.py"))["Quantise"]
    with pytest.raises(OptionError, match="levels = 1: must be at least 2"):
        quantise(levels=1)


@pytest.mark.filterwarnings("ignore")
def test_own_lightning_module(printed):
    found = printed("own_lightning_module.py")
    epochs = [found[f"epoch {number}"] for number in (1, 2, 3)]
    assert all(re.search(r"robust/pgd [\d.]+ %, robust/worst_case", each) for each in epochs)
    clean, worst = found["test images, no attack"], found["test images, worst case"]
    assert percent(worst) <= percent(clean)
    assert percent(clean) > 70


@pytest.mark.filterwarnings("ignore")
def test_evaluate_timm(printed):
    found = printed("evaluate_timm.ipynb")
    assert percent(found["no attack"]) > 60
    assert percent(found["worst case"]) <= percent(found["pgd-quick"])
    assert found["answers"] != found["answers under attack"]
    assert 0 < float(found["largest change"].removesuffix("/255")) <= 8


def test_the_notebook_holds_no_outputs_of_some_other_machine():
    cells = json.loads((EXAMPLES / "evaluate_timm.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_every_example_has_a_test_here_and_a_line_in_the_documentation():
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text()
    here = Path(__file__).read_text()
    for path in sorted(EXAMPLES.iterdir()):
        if path.suffix in (".py", ".ipynb"):
            assert f"../examples/{path.name}" in page, path.name
            assert path.name in here or path.name == "demo.py", path.name
