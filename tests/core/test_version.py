"""One version, wherever it is stated, and a package that says that it is typed."""

import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

import robusttrain
from robusttrain.core.version import __version__

ROOT = Path(__file__).parents[2]


def test_the_version_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == packaged["version"] == __version__ == robusttrain.__version__
    assert cited["title"] == packaged["name"]
    assert cited["license"] == packaged["license"]


def test_the_papers_are_cited():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    papers = [(paper["authors"][0]["family-names"], paper["year"]) for paper in cited["references"]]
    assert papers == [("Xiao", 2020), ("Xie", 2018), ("Xie", 2019), ("Wu", 2018), ("Liu", 2017)]
    assert all(paper["title"] and paper["type"] for paper in cited["references"])


def test_the_package_is_marked_as_typed():
    assert (Path(robusttrain.__file__).parent / "py.typed").is_file()


def test_what_the_package_offers_is_listed():
    """By `dir`, and so by an editor's completion, though each name is imported when first asked."""
    code = "import robusttrain, sys; print(*dir(robusttrain)); print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, imported = told.stdout.splitlines()
    assert {*robusttrain.__all__} <= {*names.split()}
    assert imported == "False"
    assert all(getattr(robusttrain, name) is not None for name in robusttrain.__all__)
