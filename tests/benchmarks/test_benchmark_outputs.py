"""Where a benchmark keeps its report is found out before anything is measured."""

import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

from benchmarks import pack, strength
from benchmarks.timing import keep, report_file
from robusttrain.core.errors import UserError

HERE = Path(__file__).parents[2] / "benchmarks"
#: Those that keep a report where ``--output`` says.
WRITING = sorted(
    path.stem
    for path in HERE.glob("*.py")
    if path.stem != "pack" and re.search(r'add_argument\(\s*"--output"', path.read_text())
)


def refused(capsys, run, *arguments):
    """The last line of what a benchmark says as it ends with exit code 2."""
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", WRITING)
def test_every_benchmark_looks_first(name, tmp_path, monkeypatch, capsys):
    """All other options are there that argparse asks for."""
    module = importlib.import_module(f"benchmarks.{name}")
    needed = {"same_verdicts": ["a", "b"], "speed": ["pgd"], "trained": ["adversarial"]}
    given = [*needed.get(name, ()), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [name, *given])
    told = refused(capsys, module.main)
    assert f"argument --output: {tmp_path}: is a folder: name a FILE.json in it" in told


def test_a_report_is_replaced_and_nothing_else(tmp_path):
    for name in ("new.json", "folder/new.json"):
        assert report_file(str(tmp_path / name)) == str(tmp_path / name)
    assert not [*tmp_path.iterdir()], "what is refused later leaves nothing"
    keep({"machine": {}}, str(tmp_path / "old.json"))
    assert report_file(str(tmp_path / "old.json"))
    for content, told in (
        ("no", "is no JSON"),
        ("[]", "holds something else than a benchmark's report"),
        (json.dumps({"schema": 2, "clean": {}}), "holds something else"),
    ):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(Exception, match=f"other.json: {told}.*: name another file"):
            report_file(str(tmp_path / "other.json"))
    with pytest.raises(Exception, match="must be called FILE.json"):
        report_file(str(tmp_path / "report.txt"))
    with pytest.raises(Exception, match=r"other.json/in.json: .*cannot be written to"):
        report_file(str(tmp_path / "other.json" / "in.json"))


def test_what_strength_writes_besides(tmp_path, capsys):
    given = ["--output", str(tmp_path / "s.json")]
    for option, kind in (("--picture", ".png"), ("--peers", ".zip")):
        told = refused(capsys, strength.main, [*given, option, str(tmp_path / "x.txt")])
        assert f"argument {option}: {tmp_path / 'x.txt'}: must be called FILE{kind}" in told
    keep({"machine": {}}, str(tmp_path / "s.json"))
    with pytest.raises(UserError, match=r"--output .*s.json: holds another benchmark's report"):
        strength.main([*given, "--work", str(tmp_path / "work")])


def test_a_pack_goes_into_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for there in (tmp_path / "full", tmp_path / "full" / "file"):
        given = ["--root", ".", "--f_b", "f_b.pth", "--output", os.fspath(there)]
        monkeypatch.setattr(sys, "argv", ["pack", *given])
        told = refused(capsys, pack.main)
        assert f"argument --output: {there}: is not empty: give a new folder" in told
