"""JSON that is nested deeper than Python recurses is a damaged file like any other."""

import pytest
import torch

from robusttrain.core.errors import UserError
from robusttrain.evaluation.auditing import journalled_audit
from robusttrain.evaluation.choosing import Run
from robusttrain.evaluation.examples import Examples
from robusttrain.evaluation.records import Records
from robusttrain.evaluation.report import read_results
from robusttrain.models.fully_convolutional import FullyConvolutional
from robusttrain.reporting.runs import read_run
from robusttrain.running.jobs import Call, Job
from robusttrain.storage.files import parsed
from robusttrain.storage.journal import Journal
from robusttrain.storage.weights import save_tensors

DEEP = "[" * 200_000
BOTH = DEEP + "]" * 200_000


@pytest.mark.parametrize("text", [DEEP, BOTH, '{"a":' * 200_000])
def test_what_is_nested_too_deeply_is_no_json(text):
    with pytest.raises(ValueError, match="nested"):
        parsed(text)


@pytest.mark.parametrize("read", [read_results, read_run])
def test_results_are_told_in_one_line(read, tmp_path):
    (tmp_path / "results.json").write_text(BOTH)
    with pytest.raises(UserError, match="is no JSON: name a results.json") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_choice_and_an_audit_are_made_anew(tmp_path):
    for kind in ("precision", "compilation"):
        (tmp_path / f".{kind}.json").write_text(BOTH)
        assert Run(tmp_path, {}, kind=kind).chosen() is None
    (tmp_path / "audit.json").write_text(BOTH)
    assert journalled_audit(Journal(tmp_path, {}), None) == {}


def test_a_job_names_the_file(tmp_path):
    job = Job("one", Call(dict, {}), tmp_path)
    job.folder.mkdir(parents=True)
    for text in (BOTH, "no", "3"):
        (job.folder / "done.json").write_text(text)
        with pytest.raises(UserError, match=r"done\.json: is damaged: delete it"):
            job.account()


@pytest.mark.parametrize("read", [Records.read, Examples.read, FullyConvolutional.load])
def test_the_names_beside_tensors_are_told(read, tmp_path):
    names = {"attacks": BOTH, "fully_convolutional": BOTH}
    save_tensors({"index": torch.zeros(2)}, tmp_path / "file.safetensors", names)
    with pytest.raises(UserError, match=r"holds no|is no h"):
        read(tmp_path / "file.safetensors")
