"""The documentation without mkdocs: links lead somewhere, the site's navigation is complete, and
what pages tell to type works. `make docs` checks the built site as well.
"""

import re
import runpy
import shlex
import sys
import unicodedata
from pathlib import Path

import pytest
import yaml

from robusttrain.commands import entry
from robusttrain.config import classes, presets
from robusttrain.config.first_look import FIRST_LOOK

ROOT = Path(__file__).parents[1]
SITE = runpy.run_path(str(ROOT / ".ci" / "site_hooks.py"))
#: Every page, by its path from the root.
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "studies", "examples", "benchmarks")
    for path in (ROOT / folder).glob("**/*.md" if folder == "docs" else "*.md")
)
#: Files that name pages.
NAMING = [
    path
    for folder in ("robusttrain", "configs", "studies", "benchmarks", "examples", "docs")
    for suffix in ("py", "yaml", "md")
    for path in (ROOT / folder).rglob(f"*.{suffix}")
] + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "Dockerfile")]


def text_of(path: str) -> str:
    return SITE["page"](path)


def anchors(text: str) -> set[str]:
    """The places of a page that a link can name, as mkdocs calls them."""
    found, fence = set(), False
    for line in text.splitlines():
        fence ^= line.startswith("```")
        if not fence and re.match(r"#+ ", line):
            title = unicodedata.normalize("NFKD", line.lstrip("# ")).encode("ascii", "ignore")
            words = re.sub(r"[^\w\s-]", "", title.decode()).strip().lower()
            found.add(re.sub(r"[-\s]+", "-", words))
    return found


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path):
    for target in SITE["targets"](text_of(path)):
        if target.startswith(("http://", "https://")):
            continue
        file = SITE["follow"](target, path) if not target.startswith("#") else path
        assert SITE["local"](target) or target.startswith("#"), f"{path}: {target}"
        assert (ROOT / file).is_file(), f"{path} links to {target}, which is not there"
        if "#" in target:
            place = target.partition("#")[2]
            assert place in anchors(text_of(file)), f"{path}: {file} has no heading {place}"


def test_a_dead_link_would_be_seen():
    text = "See [a](gone.md#there).\n\n```\n[b](code.md)\n```\n\n    [c](code.md)\n![d](e.png)"
    assert list(SITE["targets"](text)) == ["gone.md#there", "e.png"]
    assert anchors("# It's one: `two`\n```\n# code\n```\n## C -- d") == {"its-one-two", "c-d"}


def test_pages_that_code_and_presets_name_are_there():
    for path in NAMING:
        for name in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text()):
            assert (ROOT / name).is_file(), f"{path.relative_to(ROOT)} names {name}"


def test_the_navigation_has_every_page_and_nothing_else():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named = [SITE["path_of"](uri) for uri in SITE["in_nav"](site["nav"])]
    assert len(named) == len(set(named))
    for path in named:
        assert (ROOT / path).is_file(), path
    pages = {path for path in PAGES if path.startswith("docs/")}
    assert pages - set(named) == {path for path in pages if path.startswith("docs/results/studies")}


def test_links_out_of_the_documentation_follow_into_the_site():
    moved = SITE["moved"]
    assert moved("[a](../examples/pgd.py)", "docs/x.md") == "[a](repository/examples/pgd.py.md)"
    assert moved("[a](../../CONTRIBUTING.md#style)", "docs/results/README.md") == (
        "[a](../repository/CONTRIBUTING.md#style)"
    )
    assert moved("[a](docs/audit.md)", "CONTRIBUTING.md") == "[a](../audit.md)"
    assert moved("[a](audit.md#the-verdict)", "docs/x.md") == "[a](audit.md#the-verdict)"
    for path in ("docs/audit.md", "studies/README.md", "examples/pgd.py", "Makefile"):
        assert SITE["path_of"](SITE["uri_of"](path)) == path


def test_pages_tell_the_size_of_the_first_look():
    """The figures of the first look are those of so many images: a new number needs new figures."""
    start = text_of("docs/getting-started.md")
    assert f"on {FIRST_LOOK['images']} images" in start
    assert f"audit on {FIRST_LOOK['audit_images']} images: " in start
    assert f"digits-g, {FIRST_LOOK['images']} images" in text_of("docs/models.md")


def test_the_threat_model_names_every_attack_and_the_suites_that_hand_images_on():
    text = text_of("docs/threat-model.md")
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted(presets.names("attack"))
    said = re.search(r"With `--survivors true` \((.*?) set it\)", text, re.DOTALL).group(1)
    suites = [
        each for each in presets.names("suite") if presets.read("suite", each).get("survivors")
    ]
    assert sorted(re.findall(r"`([^`]+)`", said)) == sorted(suites)


def typed(page: str) -> list[list[str]]:
    """The commands ``robusttrain ...`` that a page shows, but those that need files of yours."""
    lines = re.findall(r"^    robusttrain ((?:train|evaluate) .*)$", text_of(page), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines if "path/to" not in line]


#: Little work, for whatever a page has one type.
LITTLE = {
    "train": [
        *("--model", "mlp", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"),
        *("--robust.every", "0", "--pictures.images", "0"),
    ],
    "evaluate": ["--images", "2", "--draws", "2", "--audit", "false", "--precision", "float32"],
}


@pytest.mark.parametrize(
    ("page", "commands"),
    [
        ("docs/own-attack.md", 5),
        ("docs/own-defense.md", 5),
        ("docs/own-data.md", 2),
        ("docs/own-objective.md", 2),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_a_page_tells_to_type_works(page, commands, tmp_path, monkeypatch, capsys):
    """In an empty folder with the page's own files, its commands in their order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, content in re.findall(
        r"```\w+\n# (\w[\w-]*\.(?:py|yaml))\n(.*?)```", text_of(page), re.DOTALL
    ):
        (tmp_path / name).write_text(f"# {name}\n{content}")
    lines = typed(page)
    assert len(lines) == commands
    for command, *rest in lines:
        few = ["--attack.steps", "2"] if "bpda" in " ".join(rest) else []
        few += ["--attack.tries", "2"] if "myattack.py:Corners" in rest else []
        rest = ["quick" if word == "test-time-quick" else word for word in rest]
        # Each is a process of its own for those who type it: no class of a file is loaded yet.
        monkeypatch.setattr(classes, "_files", {})
        for path in tmp_path.glob("*.py"):
            sys.modules.pop(path.stem, None)
        with pytest.raises(SystemExit) as ended:
            entry.run(command, [*rest, *LITTLE[command], *few], "robusttrain")
        assert ended.value.code == 0, (command, rest, capsys.readouterr().err)
    assert list(tmp_path.rglob("best.ckpt")) or list(tmp_path.rglob("results.json"))
