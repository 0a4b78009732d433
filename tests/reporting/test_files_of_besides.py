"""Verdicts of a second attacker lie in the folder as long as they are of its results."""

import json

from small_evaluations import Noisy, classifier, run_small

SECOND = "known_draw-verdicts.safetensors"


def test_verdicts_of_an_earlier_run_go(tmp_path):
    model = Noisy(classifier())
    run_small(tmp_path, attacks=("pgd-quick",), model=model, known_draw=True)
    assert (tmp_path / SECOND).is_file()
    content = json.loads((tmp_path / "results.json").read_text())
    # What this attacker knows stands beside the figure.
    row = content["known_draw"]["attacks"]["pgd-quick"]
    assert row["knows"] == "classifier, the draw that scores"
    assert content["attacks"]["pgd-quick"]["knows"] == "classifier"
    run_small(tmp_path, attacks=("pgd-quick",), model=model, fresh=True)
    assert not (tmp_path / SECOND).exists()
    assert (tmp_path / "verdicts.safetensors").is_file()
