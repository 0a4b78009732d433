"""evaluate.py that is stopped and started again: nothing finished is done twice, and nothing else
is taken for it.
"""

import json
import shutil
import signal
from types import SimpleNamespace
from unittest import mock

import pytest
from safetensors.torch import load_file

from robusttrain.evaluation import choosing
from robusttrain.evaluation.precision import Speeds
from robusttrain.evaluation.report import changes
from robusttrain.storage.journal import Journal

pytestmark = pytest.mark.filterwarnings("ignore")
COMMON = ("--images", 24, "--draws", 2, "--data.batch_size", 8, "--trainer.accelerator", "cpu")
ATTACKS = ("--attack", "bpda-i-quick", "--attack", "wt", "--attack.wt.steps", 3)


@pytest.fixture
def evaluate(command, trained, tmp_path):
    """Evaluates the trained checkpoint in three batches under two attacks: nine entries."""

    def run(*arguments, output="o"):
        done = command(
            "evaluate.py",
            "--checkpoint",
            trained.best,
            *COMMON,
            *ATTACKS,
            "--output",
            tmp_path / output,
            *arguments,
        )
        path = tmp_path / output / "results.json"
        done.raw = path.read_text() if path.exists() else None
        return done

    return run


@pytest.fixture
def puts(monkeypatch):
    """Notes what is written to the journal; after ``stop_after`` entries the process gets a
    signal.
    """

    class Notes(list):
        stop_after, signal = 10_000, signal.SIGINT

    notes, put = Notes(), Journal.put

    def noted(self, stage, images, labels, indices, entry):
        if len(notes) == notes.stop_after:
            signal.raise_signal(notes.signal)
        put(self, stage, images, labels, indices, entry)
        notes.append((stage, int(indices[0])))

    monkeypatch.setattr(Journal, "put", noted)
    return notes


@pytest.fixture(scope="module")
def unfinished(run_here, trained, tmp_path_factory):
    """The folder of an evaluation that was interrupted after its first entry."""
    output, put, entries = tmp_path_factory.mktemp("unfinished") / "o", Journal.put, []

    def noted(self, *entry):
        if entries:
            raise KeyboardInterrupt
        put(self, *entry)
        entries.append(entry)

    options = ["--checkpoint", trained.best, *COMMON, *ATTACKS, "--output", output]
    with mock.patch.object(Journal, "put", noted):
        stopped = run_here("evaluate.py", *options)
    assert stopped.code == 130, stopped.err
    return output


@pytest.fixture(scope="module")
def finished(run_here, trained, tmp_path_factory):
    """The folder of an evaluation that ended, what it wrote, and what went into its journal."""
    output, put, entries = tmp_path_factory.mktemp("finished") / "o", Journal.put, []

    def noted(self, stage, images, labels, indices, entry):
        put(self, stage, images, labels, indices, entry)
        entries.append((stage, int(indices[0])))

    options = ["--checkpoint", trained.best, *COMMON, *ATTACKS, "--output", output]
    with mock.patch.object(Journal, "put", noted):
        done = run_here("evaluate.py", *options)
    assert done.code == 0, done.err
    raw = (output / "results.json").read_text()
    return SimpleNamespace(folder=output, raw=raw, entries=entries)


def without_seconds(raw):
    found = json.loads(raw)
    for row in found["attacks"].values():
        row.pop("seconds")
    return {name: value for name, value in found.items() if name not in ("command", "plan")}


@pytest.mark.parametrize(
    ("arguments", "number", "code", "told"),
    [
        ((), signal.SIGTERM, 143, "terminated"),
        (("--survivors", "true"), signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_run_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(
    evaluate, puts, finished, arguments, number, code, told
):
    every, raw = finished.entries, finished.raw
    if arguments:
        whole = evaluate(*arguments, output="whole")
        assert whole.code == 0, whole.err
        every, raw, puts[:] = list(puts), whole.raw, []
    assert len(every) == 9
    puts.stop_after, puts.signal, handler = 4, number, signal.getsignal(number)
    stopped = evaluate(*arguments)
    assert stopped.code == code
    assert (
        stopped.err.splitlines()[-1]
        == f"{told}: what was finished is kept; the same command goes on from there"
    )
    assert signal.getsignal(number) is handler
    assert stopped.raw is None
    puts.stop_after, first = 10_000, list(puts)
    again = evaluate(*arguments)
    assert again.code == 0, again.err
    assert "going on in" in again.err
    assert "4 finished batches of attacks found" in again.err
    # Each batch of each attack once, over both runs.
    assert sorted(puts) == sorted(every)
    assert puts[:4] == first
    assert without_seconds(again.raw) == without_seconds(raw)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_repetition_that_was_stopped_goes_on(command, puts, finished, tmp_path, elsewhere):
    folder = shutil.copytree(finished.folder, tmp_path / "before")
    line = ["evaluate.py", "--again", folder]
    line += ["--output", tmp_path / "elsewhere"] if elsewhere else []
    puts.stop_after = 4
    stopped = command(*line)
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1].endswith("; the same command goes on from there")
    puts.stop_after = 10_000
    again = command(*line)
    assert again.err.splitlines()[-1] == "again: the same", again.err
    assert sorted(puts) == sorted(finished.entries)  # each batch of each attack once
    assert (folder / "again").exists() is not elsewhere
    puts.clear()
    assert command(*line).code == 0
    assert len(puts) == 9, "a finished repetition answered in place of another one"


def test_a_repetition_that_cannot_go_on_says_how_to_begin_anew(
    command, puts, finished, unfinished, tmp_path
):
    folder = shutil.copytree(finished.folder, tmp_path / "before")
    shutil.copytree(unfinished, folder / "again")
    fingerprint = folder / "again" / "journal" / "fingerprint.json"
    fingerprint.write_text(json.dumps(json.loads(fingerprint.read_text()) | {"seed": 9}))
    refused = command("evaluate.py", "--again", folder)
    assert refused.code == 2
    assert "seed: there 9, now 0" in refused.err
    assert "drop it with --fresh true" in refused.err
    again = command("evaluate.py", "--again", folder, "--fresh", "true")
    assert again.code == 0, again.err
    assert len(puts) == 9


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--output"], "--output: give a folder"),
        (["--fresh", "yes"], "--fresh = 'yes': must be one of true, false"),
        (["--output", "FOLDER"], "holds the results that are repeated: name another"),
    ],
)
def test_where_a_repetition_goes_is_checked(command, finished, options, told):
    options = [finished.folder if each == "FOLDER" else each for each in options]
    done = command("evaluate.py", "--again", finished.folder, *options)
    assert done.code == 2
    assert told in done.err


def test_how_to_go_on_does_not_drop_what_is_kept(evaluate, puts):
    """The same command with --fresh true would."""
    puts.stop_after = 4
    stopped = evaluate("--fresh", "true")
    said = "what was finished is kept; the same command without --fresh true goes on from there"
    assert stopped.err.splitlines()[-1] == f"interrupted: {said}"


def test_a_finished_run_is_found_whole_and_byte_for_byte(evaluate, puts):
    first = evaluate()
    written, puts[:] = len(puts), []
    again = evaluate()
    assert (written, len(puts)) == (9, 0)
    assert again.raw == first.raw
    # Another evaluation may take the place of one that is finished.
    other = evaluate("--seed", 1)
    assert other.code == 0, other.err
    assert len(puts) == 9


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seed", "1"], "seed: there 0, now 1"),
        (["--draws", "3"], "draws: there 2, now 3"),
        (["--epsilon", "0.05"], "epsilon: there 0.031, now 0.05"),
        (["--attack.wt.steps", "4"], "attacks.wt.init_args.steps: there 3, now 4"),
        (["--defense.radius", "0.15"], "target.defense.init_args.radius: there 0.1, now 0.15"),
        (["--precision", "bfloat16"], "precision.bpda-i-quick: there float32, now bfloat16"),
        (["--survivors", "true"], "survivors: there False, now True"),
    ],
)
def test_an_unfinished_run_of_other_settings_is_not_touched(
    evaluate, puts, unfinished, tmp_path, arguments, told
):
    shutil.copytree(unfinished, tmp_path / "o")
    refused = evaluate(*arguments)
    assert refused.code == 2
    assert told in refused.err
    assert "--fresh true" in refused.err
    assert puts == []


def test_whoever_says_so_begins_anew_in_the_folder_of_an_unfinished_run(
    evaluate, puts, unfinished, tmp_path
):
    shutil.copytree(unfinished, tmp_path / "o")
    assert evaluate("--seed", "1", "--fresh", "true").code == 0
    assert len(puts) == 9


def test_a_run_goes_on_in_the_precision_that_it_began_with(evaluate, puts, monkeypatch):
    """Whatever is faster by now; another run measures for itself."""
    for speeds, stop_after, code, arguments, expected in (
        (Speeds(2.0, 1.0), 2, 130, (), "bfloat16"),
        (Speeds(1.0, 2.0), 10_000, 0, (), "bfloat16"),
        (Speeds(1.0, 2.0), 10_000, 0, ("--seed", 1), "float32"),
    ):
        monkeypatch.setattr(choosing, "measure_speeds_of", lambda *_, speeds=speeds: speeds)
        puts.stop_after = stop_after
        done = evaluate("--precision", "auto", *arguments)
        assert done.code == code, done.err
        assert f"precision: attacks differentiate in {expected}" in done.err
    assert len(puts) == 18


def test_a_damaged_entry_is_told_and_done_again(evaluate, puts, finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "o")
    file = sorted((tmp_path / "o" / "journal" / "wt").iterdir())[1]
    file.write_bytes(file.read_bytes()[:-100])
    again = evaluate()
    assert again.code == 0, again.err
    assert [stage for stage, _ in puts] == ["wt"]
    assert "dropped, to be done again" in again.err
    assert without_seconds(again.raw) == without_seconds(finished.raw)


def test_pictures_are_of_images_that_an_attack_was_given(evaluate, tmp_path):
    """With --survivors the others are clean images, and right."""
    asked = ("--survivors", "true", "--export", "png", "--save_images", "true")
    done = evaluate(*asked)
    assert done.code == 0, done.err
    found = json.loads(done.raw)
    first, last = (found["attacks"][name] for name in ("bpda-i-quick", "wt"))
    assert 24 >= first["images"] > last["images"] > 0
    for name, row in found["attacks"].items():
        export = found["export"][name]
        assert export["images"] == row["images"]
        assert len(list((tmp_path / "o" / "png" / name).glob("*.png"))) == row["images"]
        assert len(load_file(tmp_path / "o" / f"{name}.safetensors")["images"]) == row["images"]
        changed_at_most = export["verdicts_changed"] / row["images"]
        assert export["robust_accuracy"] == pytest.approx(
            row["robust_accuracy"], abs=changed_at_most
        )
    assert f"of {last['images']} images" in done.err


def test_without_survivors_pictures_are_of_all_images(command, tmp_path):
    """Those that are wrong to begin with are attacked by nobody, and count."""
    packaged = ["--checkpoint", "digits-standard", "--images", 297]
    asked = ["--attack", "fgsm", "--audit", "false", "--export", "png", "--save_images", "true"]
    done = command("evaluate.py", *packaged, *asked, "--output", tmp_path)
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["clean"]["accuracy"] < 1
    export, row = found["export"]["fgsm"], found["attacks"]["fgsm"]
    assert export["images"] == 297 == len(list((tmp_path / "png" / "fgsm").glob("*.png")))
    assert len(load_file(tmp_path / "fgsm.safetensors")["images"]) == 297
    assert export["robust_accuracy"] == pytest.approx(
        row["robust_accuracy"], abs=export["verdicts_changed"] / 297
    )


def test_pictures_of_a_finished_run_cost_no_attack(evaluate, puts, finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "o")
    exported = evaluate("--export", "png")
    assert exported.code == 0, exported.err
    assert puts == []  # nothing was attacked again
    found = json.loads(exported.raw)
    rows = found.pop("export")
    assert list(changes(json.loads(finished.raw), found)) == []
    assert rows.keys() == {"bpda-i-quick", "wt"}
    for name, row in rows.items():
        assert len(list((tmp_path / "o" / "png" / name).glob("*.png"))) == 24
        assert row["outside_threat"] == row["earlier_files"] == 0
        assert 0 <= row["verdicts_changed"] <= 24
        changed_at_most = row["verdicts_changed"] / 24
        assert row["robust_accuracy"] == pytest.approx(
            found["attacks"][name]["robust_accuracy"], abs=changed_at_most
        )
    assert "eight-bit images in" in exported.err
    assert "of an earlier run" not in exported.err
    (tmp_path / "o" / "png" / "wt" / "999999.png").touch()
    again = evaluate("--export", "png")
    assert "beside 1 of an earlier run" in again.err
    rows = json.loads(again.raw)["export"]
    assert {name: row["earlier_files"] for name, row in rows.items()} == {
        "bpda-i-quick": 0,
        "wt": 1,
    }


def test_an_unknown_kind_of_picture_is_refused(evaluate):
    done = evaluate("--export", "gif")
    assert done.code == 2
    assert "--export gif: must be png" in done.err
