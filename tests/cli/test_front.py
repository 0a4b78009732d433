"""What is answered at once: help, lists, refusals, without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from robusttrain.commands import entry, front
from robusttrain.config import presets
from robusttrain.core.errors import UserError

ROOT = Path(__file__).parents[2]


def run(*arguments, folder=ROOT):
    """``python -m robusttrain``, and which modules were loaded in the end."""
    script = (
        "import sys, atexit;"
        "atexit.register(lambda: sys.stderr.write('torch ' + str('torch' in sys.modules)));"
        "from robusttrain.commands.entry import console; console()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 0, "trains robust image classifiers"),
        (("--help",), 0, "robusttrain COMMAND --help"),
        (("--version",), 0, "0.2"),
        (("evaluate", "--help"), 0, "by what: --suite NAME"),
        (("train", "-h"), 0, "--training adversarial"),
        (("report", "--help"), 0, "report.html beside the results.json"),
        (("compare", "--help"), 0, "comparison.html in the last folder"),
        (("list", "--help"), 0, "robusttrain list attack suite"),
        (("list",), 0, "bpda-eot"),
        (("list", "suite"), 0, "worst-case"),
        (("list", "models"), 0, "digits-g"),
        (("list", "suites"), 2, "list suites: there are data, model"),
        (("evaluate", "--list"), 0, "bpda-eot"),
        (("evaluat",), 2, "robusttrain: error: evaluat: no such command; did you mean evaluate?"),
        (("transfer",), 2, "no such command; did you mean evaluate --models A B?"),
        (
            ("evaluate", "--attack", "pgdd"),
            2,
            "robusttrain evaluate: error: --attack pgdd: no such",
        ),
        (("evaluate", "--suite=worst"), 2, "did you mean worst-case"),
        (("train", "--training", "tradess"), 2, "did you mean trades"),
        (("evaluate", "--config", "none.yaml"), 2, "--config = 'none.yaml': there is no such file"),
        (
            ("evaluate", "--checkpoint", "none.ckpt"),
            2,
            "--checkpoint = 'none.ckpt': there is no such file",
        ),
        (("evaluate", "--checkpoint", "digits_g"), 2, "did you mean digits-g, a model that comes"),
    ],
)
def test_it_is_answered_without_torch(arguments, code, said):
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert done.stderr.endswith("torch False")


@pytest.mark.parametrize("name", [None, *front.COMMANDS])
def test_help_fits_on_one_screen(name):
    lines = front.help_for(name).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_own_presets_of_the_working_folder_are_listed(tmp_path):
    (tmp_path / "configs" / "attack").mkdir(parents=True)
    (tmp_path / "configs" / "attack" / "mine.yaml").write_text("# My own\nlike: pgd\n")
    done = run("list", "attack", folder=tmp_path)
    assert "mine" in done.stdout
    assert "My own" in done.stdout
    assert "bpda-eot" in done.stdout


def test_brackets_of_a_preset_are_no_markup():
    assert any("[imagenet]" in presets.about(path) for path in presets.names("model").values())
    assert "robusttrain[imagenet]" in run("list", "model").stdout.replace("\n", "")


def test_what_may_be_more_than_a_name_is_left_to_the_command():
    front.refuse_at_once(["--attack", "mine.yaml", "--model", "net.py:Net", "--attack.steps", "3"])
    with pytest.raises(UserError, match="--weights = 'w.pth': there is no such file"):
        front.refuse_at_once(["--model=mlp", "--weights=w.pth"])


@pytest.mark.parametrize(
    ("option", "wrong", "right"),
    [
        ("--model", "vgg_smal", "vgg_small"),
        ("--data", "digts", "digits"),
        ("--defense", "advtransfrm", "advtransform"),
        ("--suite", "worst-cse", "worst-case"),
    ],
)
def test_names_of_every_kind_are_refused(option, wrong, right, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=rf"^{option} {wrong}: no such preset; .*{right}"):
        front.refuse_at_once([option, wrong])
    front.refuse_at_once([option, right, "--defense", "none", "--model", "timm:resnet18"])
    if option == "--data":  # may be a folder
        (tmp_path / wrong).mkdir()
        monkeypatch.chdir(tmp_path)
        front.refuse_at_once([option, wrong])


@pytest.mark.parametrize(
    ("training", "own"),
    [("denoiser", "--purifier.learning_rate"), ("reparameterization", "--h.learning_rate")],
)
def test_all_help_is_that_of_the_training_that_the_line_names(training, own, monkeypatch, capsys):
    monkeypatch.setattr(entry, "main", lambda command, arguments, program: command(arguments))
    with pytest.raises(SystemExit) as ended:
        entry.run("train", ["--training", training, "--help", "all"], "train.py")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"train.py --training {training}" in said
    assert own in said


def test_an_option_that_is_given_twice_is_told():
    """The last one counts, as in other programs, but not in silence."""
    told = front.said_again(["--epsilon", "0.1", "--seed=3", "--epsilon=8/255", "--seed", "3"])
    assert told == ["warning: --epsilon is given 2 times (0.1, 8/255): 8/255 counts"]
    (models,) = front.said_again(["--models", "a", "b", "--images", "8", "--models", "a", "c"])
    assert "--models is given 2 times (a b, a c): a c counts" in models
    assert front.said_again(["--attack", "pgd", "--attack", "fgsm", "--trust=a", "--trust=b"]) == []
    found = run("train", "--model", "mlp", "--seed", "1", "--seed", "2", "--print_config")
    assert "warning: --seed is given 2 times (1, 2): 2 counts\n" in found.stderr
    assert "seed: 2" in found.stdout


def test_an_empty_value_is_refused():
    """``--checkpoint "$FILE"`` without FILE would take the newest one."""
    for arguments in (["--checkpoint", ""], ["--output="], ["--data", " "]):
        with pytest.raises(UserError, match=f"^{arguments[0].rstrip('=')} = '.*': is empty"):
            front.refuse_at_once(arguments)


def test_a_rank_that_no_launcher_set_is_left_aside(monkeypatch, capsys):
    """Lightning would take the only process for the second one, which says nothing."""
    seen = []
    monkeypatch.setattr(entry, "main", lambda *rest: seen.append(os.environ.get("RANK")))
    for launcher in (None, "TORCHELASTIC_RUN_ID", "KUBERNETES_PORT"):
        for name in ("TORCHELASTIC_RUN_ID", "KUBERNETES_PORT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("RANK", "1")
        if launcher:
            monkeypatch.setenv(launcher, "set")
        entry.run("report", ["nowhere"], "robusttrain report")
    assert seen == [None, "1", "1"]
    assert capsys.readouterr().err.count("RANK=1 is set, and no torchrun is at work") == 1


CONSOLE = "from robusttrain.commands.entry import console; console()"


@pytest.mark.parametrize(
    ("line", "code"), [("list data", 0), ("--version", 0), ("evaluate --attack nosuch", 2)]
)
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_whose_streams_are_closed_runs_all_the_same(line, code, closed):
    script = f'"$0" -c "{CONSOLE}" {line} {closed}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(["sh", "-c", script, sys.executable], env=environment, check=False)
    assert found.returncode == code


def test_a_process_without_a_terminal_may_import_the_console():
    script = "import sys; sys.stderr = sys.stdout = None; import robusttrain.core.console"
    assert not subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode


def test_a_folder_that_was_deleted_is_one_line(tmp_path):
    script = f"import os; os.rmdir(os.getcwd()); {CONSOLE}"
    found = subprocess.run(
        [sys.executable, "-c", script, "evaluate", "--attack", "fgsm"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == (
        "robusttrain evaluate: error: the folder that this was started in is deleted: change to"
        " another\n"
    )
