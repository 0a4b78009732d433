"""The journal: what was finished is found again, and nothing else is."""

import errno
import json
import shutil

import pytest
import torch

from robusttrain.core.errors import UserError
from robusttrain.storage import journal as journal_module
from robusttrain.storage.journal import Journal, differences, digest, refuse_others, weights_of

MARK = {"attack": {"steps": 10, "epsilon": 0.031}, "seed": 0, "weights": ["a", "b"]}


@pytest.fixture
def batch(images):
    return images(), torch.tensor([0, 1, 2, 0]), torch.tensor([3, 5, 8, 13])


ENTRY = {"score": torch.tensor([[True], [False], [True], [True]]), "images": torch.rand(4, 3, 8, 8)}


def test_what_was_put_is_found_by_another_process(tmp_path, batch):
    Journal(tmp_path / "journal", MARK).put("bpda-i", *batch, ENTRY)
    again = Journal(tmp_path / "journal", MARK)
    found = again.get("bpda-i", *batch)
    assert found.keys() == ENTRY.keys()
    assert all(torch.equal(found[name], ENTRY[name]) for name in ENTRY)
    assert again.get("bpda-eot", *batch) is None
    assert again.get("bpda-i", *(part[:2] for part in batch)) is None
    assert again.entries == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
        lambda raw: b"",
    ],
)
def test_a_damaged_entry_is_dropped_told_and_done_again(tmp_path, batch, damage):
    told = []
    kept = Journal(tmp_path / "journal", MARK, report=told.append)
    kept.put("pgd", *batch, ENTRY)
    kept.put("fgsm", *batch, ENTRY)
    (file,) = (tmp_path / "journal" / "pgd").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert kept.get("pgd", *batch) is None
    assert len(told) == 1
    assert str(file) in told[0]
    assert not file.exists()
    kept.put("pgd", *batch, ENTRY)
    assert torch.equal(kept.get("pgd", *batch)["score"], ENTRY["score"])
    assert kept.get("fgsm", *batch) is not None


def test_an_unfinished_run_of_other_settings_is_refused_and_says_what_differs(tmp_path):
    Journal(tmp_path / "journal", MARK)
    other = {**MARK, "attack": {"steps": 20, "epsilon": 0.031}}
    with pytest.raises(UserError, match=r"differs in attack\.steps: there 10, now 20: ") as caught:
        Journal(tmp_path / "journal", other)
    assert f"--output {tmp_path}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Journal(tmp_path / "journal", other, fresh=True).folder.is_dir()


def test_what_is_known_at_once_is_refused_at_once(tmp_path):
    refuse_others(tmp_path / "journal", {"seed": 1})  # nothing lies there
    Journal(tmp_path / "journal", MARK)
    refuse_others(tmp_path / "journal", {"seed": 0})
    with pytest.raises(UserError, match=r"differs in seed: there 0, now 1: "):
        refuse_others(tmp_path / "journal", {"seed": 1})
    with pytest.raises(UserError, match="now nothing"):  # the rest is not missing by chance
        refuse_others(tmp_path / "journal", {"seed": 0}, whole=True)
    Journal(tmp_path / "journal", MARK).finish()
    refuse_others(tmp_path / "journal", {"seed": 1})


def test_a_finished_run_makes_room_for_another_but_serves_its_own_command(tmp_path, batch):
    first = Journal(tmp_path / "journal", MARK)
    first.put("pgd", *batch, ENTRY)
    first.finish()
    same = Journal(tmp_path / "journal", MARK)
    assert same.finished
    assert same.get("pgd", *batch) is not None
    told = []
    other = Journal(tmp_path / "journal", {**MARK, "seed": 1}, report=told.append)
    assert told == [
        f"{tmp_path}: takes the place of a finished run that differs in seed: there 0, now 1;"
        " another --output keeps both"
    ]
    assert not other.finished
    assert other.get("pgd", *batch) is None
    Journal(tmp_path / "journal", {**MARK, "seed": 1}, report=told.append)
    Journal(tmp_path / "journal", MARK, fresh=True, report=told.append)
    assert len(told) == 1


@pytest.mark.parametrize("fresh", [True, False])
def test_a_finished_run_of_other_settings_is_not_dropped_in_silence(tmp_path, fresh):
    """Nor where nobody asked for anew, as with ``--again``; an unfinished one is dropped at a
    wish.
    """
    lines = []
    Journal(tmp_path / "journal", {"seed": 0}).finish()
    Journal(tmp_path / "journal", {"seed": 1}, fresh, lines.append)
    (line,) = lines
    assert "takes the place of a finished run that differs in seed: there 0, now 1" in line
    Journal(tmp_path / "journal", {"seed": 2}, True, lines.append).finish()
    Journal(tmp_path / "journal", {"seed": 2}, True, lines.append)
    assert lines == [line], "unfinished, or the same"


def test_answers_are_told_only_where_nothing_else_differs(tmp_path):
    def run(weights, answer):
        told = []
        target = {"answers": [[answer]], "weights": weights}
        Journal(tmp_path / "journal", {"target": target}, report=told.append).finish()
        return " ".join(told)

    run("a", 1.0)
    assert "differs in target.weights: there a, now b; another" in run("b", 2.0)
    assert "differs in target.answers.0.0: there 2.0, now 3.0; another" in run("b", 3.0)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("moment", range(4))
def test_a_kill_while_an_old_run_is_removed_leaves_nothing_for_the_next(
    tmp_path, batch, monkeypatch, moment
):
    """A folder loses its files one by one, the fingerprint perhaps first."""
    old = Journal(tmp_path / "journal", MARK)
    for stage in ("clean", "pgd", "fgsm"):
        old.put(stage, *batch, ENTRY)
    old.finish()
    removed = []

    def killed(path, *args, **kwargs):
        files = sorted(path.rglob("*"), key=lambda each: each.name != "fingerprint.json")
        for each in [each for each in files if each.is_file()][:moment]:
            each.unlink()
            removed.append(each)
        raise KilledError

    monkeypatch.setattr("robusttrain.storage.journal.shutil.rmtree", killed)
    with pytest.raises(KilledError):
        Journal(tmp_path / "journal", {**MARK, "seed": 1})
    monkeypatch.undo()
    assert len(removed) == moment
    new = Journal(tmp_path / "journal", {**MARK, "seed": 1})
    assert not new.finished
    for stage in ("clean", "pgd", "fgsm"):
        assert new.get(stage, *batch) is None
    Journal(tmp_path / "journal", {**MARK, "seed": 2}, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]  # and no rest of them


def test_a_folder_without_a_fingerprint_is_of_nobody(tmp_path, batch):
    """As a kill left it before removal was one stroke."""
    old = Journal(tmp_path / "journal", MARK)
    old.put("pgd", *batch, ENTRY)
    old.finish()
    (tmp_path / "journal" / "fingerprint.json").unlink()
    new = Journal(tmp_path / "journal", {**MARK, "seed": 1})
    assert not new.finished
    assert new.get("pgd", *batch) is None


def test_entries_of_another_run_are_not_taken(tmp_path, batch):
    told = []
    first = Journal(tmp_path / "journal", MARK)
    first.put("pgd", *batch, ENTRY)
    entry = next((tmp_path / "journal" / "pgd").iterdir())
    content = entry.read_bytes()
    second = Journal(tmp_path / "journal", {**MARK, "seed": 1}, fresh=True, report=told.append)
    entry.parent.mkdir()
    entry.write_bytes(content)
    assert second.get("pgd", *batch) is None
    assert "is of another run: dropped" in told[0]


def test_a_run_whose_folder_another_one_took_stops(tmp_path, batch):
    first = Journal(tmp_path / "journal", MARK)
    second = Journal(tmp_path / "journal", {**MARK, "seed": 1}, fresh=True)
    for work in (lambda: first.put("pgd", *batch, ENTRY), first.finish):
        with pytest.raises(UserError, match=f"--output {tmp_path}: another run has taken"):
            work()
    assert second.get("pgd", *batch) is None
    assert not second.finished


def test_a_run_whose_folder_was_deleted_stops(tmp_path, batch):
    journal = Journal(tmp_path / "journal", MARK)
    shutil.rmtree(tmp_path / "journal")
    for work in (lambda: journal.put("pgd", *batch, ENTRY), journal.finish):
        with pytest.raises(UserError, match=f"--output {tmp_path}: its journal was deleted"):
            work()


def test_the_same_indices_of_other_images_are_refused(tmp_path, batch):
    images, labels, indices = batch
    kept = Journal(tmp_path / "journal", MARK)
    kept.put("pgd", images, labels, indices, ENTRY)
    with pytest.raises(UserError, match="the data set has changed"):
        kept.get("pgd", images + 1e-3, labels, indices)
    with pytest.raises(UserError, match="the data set has changed"):
        kept.get("pgd", images, labels + 1, indices)


def test_a_full_disk_leaves_what_was_finished(tmp_path, batch, monkeypatch):
    kept = Journal(tmp_path / "journal", MARK)
    kept.put("fgsm", *batch, ENTRY)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("robusttrain.storage.files.os.fsync", full)
    with pytest.raises(UserError, match="the disk is full; what was finished is kept"):
        kept.put("pgd", *batch, ENTRY)
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == [
        "fgsm",
        "fingerprint.json",
        "pgd",
    ]
    assert not list((tmp_path / "journal" / "pgd").iterdir())
    assert kept.get("fgsm", *batch) is not None


def test_names_of_stages_are_safe_folders(tmp_path, batch):
    kept = Journal(tmp_path / "journal", MARK)
    kept.put("../../else where/pgd", *batch, ENTRY)
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]
    assert kept.get("../../else where/pgd", *batch) is not None


def test_a_truncated_fingerprint_counts_as_another_run(tmp_path):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "fingerprint.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="unfinished run"):
        Journal(tmp_path / "journal", MARK)


def test_differences_name_what_is_new_and_what_is_gone():
    told = differences({"a": 1, "b": {"c": [1, 2]}}, {"b": {"c": [1, 3]}, "d": None})
    assert told == [
        "a: there 1, now nothing",
        "b.c.1: there 2, now 3",
        "d: there nothing, now None",
    ]
    assert differences(MARK, json.loads(json.dumps(MARK))) == []


def test_digests_differ_where_anything_does(convnet):
    values = torch.arange(4.0)
    different = [
        {"a": values},
        {"b": values},
        {"a": values.double()},
        {"a": values.view(2, 2)},
        {"a": values + 1e-6},
        {"a": values.bfloat16()},
        {},
    ]
    assert len({digest(tensors) for tensors in different}) == len(different)
    assert digest({"a": values, "b": values}) == digest({"b": values, "a": values.clone()})
    assert weights_of(convnet(seed=0)) == weights_of(convnet(seed=0)) != weights_of(convnet(seed=1))
    assert journal_module.digest({"empty": torch.zeros(0, 3)})
