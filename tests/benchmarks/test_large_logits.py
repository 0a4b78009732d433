"""Logits times a factor: the same model, which attacks leave as robust as it is."""

import json

from benchmarks import large_logits


def test_the_command(tmp_path, capsys):
    file = tmp_path / "logits.json"
    large_logits.main(["--images", "12", "--steps", "10", "--output", str(file)])
    report = json.loads(file.read_text())
    assert report["images"] == 12
    rows = report["accuracy"]
    ours, plain = rows["PGD-10 (ours)"], rows["PGD-10 (ours, torch's cross entropy)"]
    assert [*ours] == ["1", "10", "100"]
    assert ours["1"] == plain["1"] < 100
    assert ours["100"] < plain["100"]
    assert "PGD-10 (ours)" in capsys.readouterr().out
