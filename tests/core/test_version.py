"""One version, wherever it is stated, and a package that says that it is typed."""

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
