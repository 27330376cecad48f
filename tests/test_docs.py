"""The documentation: its Python runs, its commands exist, its links lead somewhere."""

import contextlib
import dataclasses
import importlib
import io
import os
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import yaml

from diffjax.run import cli
from diffjax.systems.autoencoder import request as autoencoder
from diffjax.systems.diamond import request as diamond
from diffjax.systems.mdm import request as mdm
from diffjax.systems.relay import request as relay

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = ("train.py", "sample.py", "diffjax.evaluate", "diffjax.prepare", "diffjax.convert")
COMMANDS += ("diffjax.studies.snr", "diffjax.studies.steps", "diffjax.studies.drift")
NEED_A_RUN = ("sample.py", "diffjax.evaluate", "diffjax.studies.steps")


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


PYTHON = [
    pytest.param(text, id=f"{short(page)}-{i}")
    for page in PAGES
    for i, text in enumerate(blocks(page, "python"))
]
LINES = [
    (page, line)
    for page in PAGES
    for text in blocks(page, "sh")
    for line in text.splitlines()
    if line.strip()
]


@pytest.mark.parametrize("text", PYTHON)
def test_python_blocks_run(text, tmp_path, monkeypatch, request):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    import matplotlib

    matplotlib.use("Agg")
    if '"runs/emoji"' in text:  # the reader's trained run; a tiny one serves as well
        (tmp_path / "runs").mkdir()
        os.symlink(request.getfixturevalue("trained"), tmp_path / "runs" / "emoji")
    module = types.ModuleType("docs_block")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "docs_block", module)
    exec(compile(text, "block", "exec"), module.__dict__)
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot:
        pyplot.close("all")


@pytest.fixture(scope="module")
def known_flags(trained):
    """{command: the flags that its --help lists}; those of sampling depend on the run's system."""
    flags = {}
    for name in COMMANDS:
        module = importlib.import_module(name.removesuffix(".py"))
        words = ["--workdir", str(trained)] if name in NEED_A_RUN else []
        text = io.StringIO()
        with contextlib.redirect_stdout(text), pytest.raises(SystemExit) as leave:
            module.main([*words, "--help"])
        assert not leave.value.code
        flags[name] = {"--debug", *re.findall(r"--[a-z][\w-]*", text.getvalue())}
        if name in NEED_A_RUN:  # of a run of EDM's; a relay stage takes these
            flags[name] |= {f"--{field.name}" for field in dataclasses.fields(relay.Request)}
            flags[name] |= {f"--{field.name}" for field in dataclasses.fields(mdm.Request)}
            flags[name] |= {f"--{field.name}" for field in dataclasses.fields(diamond.Request)}
            flags[name] |= {f"--{field.name}" for field in dataclasses.fields(autoencoder.Request)}
            flags[name] |= {"--mode", "--shift"}  # of a one-step generator, beside its base's
    return flags


def invocations():
    """(page, command, its words) for each of our commands in a `sh` block."""
    for page, line in LINES:
        words = shlex.split(line, comments=True)
        separators = [i for i, w in enumerate(words) if w in ("&&", "||", ";", "|")]
        for start, end in zip([0, *(i + 1 for i in separators)], [*separators, len(words)]):
            part = words[start:end]
            for i, word in enumerate(part):
                if word in COMMANDS and (word.endswith(".py") or part[i - 1] == "-m"):
                    yield pytest.param(page, word, part[i + 1 :], id=f"{short(page)}: {line[:70]}")


@pytest.mark.parametrize("page, command, words", invocations())
def test_commands_exist(page, command, words, known_flags):
    words, overrides = cli.split_overrides(words)
    given = [w.split("=")[0] for w in words if w.startswith("--")]
    unknown = set(given) - known_flags[command]
    assert not unknown, f"{page.name}: {command} has no {unknown}"
    if command != "train.py" and not (command == "diffjax.convert" and "--config" in words):
        assert not overrides
        return
    config = "configs/emoji.py"
    if "--config" in words:
        config = words[words.index("--config") + 1]
    cli.apply_overrides(cli.load_config(str(ROOT / config)), overrides)


@pytest.mark.slow
def test_the_relay_page_s_first_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    lines = blocks(DOCS / "relay.md", "sh")[0].splitlines()
    assert len(lines) == 3
    for line in lines:
        _, script, *words = shlex.split(line)
        assert importlib.import_module(script.removesuffix(".py")).main(words) == 0
    assert (tmp_path / "runs" / "relay_tiny" / "samples" / "seed_0.png").is_file()


@pytest.mark.slow
def test_the_motion_page_s_first_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in blocks(DOCS / "motion.md", "sh")[0].splitlines():
        _, script, *words = shlex.split(line)
        words = [w.replace("configs/", f"{ROOT}/configs/") for w in words]
        assert importlib.import_module(script.removesuffix(".py")).main(words) == 0
    made = tmp_path / "runs" / "mdm_tiny" / "samples" / "seed_0"
    assert len(list(made.glob("*.bvh"))) == 4 and (made / "samples.gif").is_file()


def test_modules_in_commands_exist():
    for page, line in LINES:
        for module in re.findall(r"-m (diffjax[\w.]*)", line):
            assert module in COMMANDS, f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_config_fields_in_the_text_exist(page):
    config = cli.load_config(str(ROOT / "configs" / "emoji.py"))
    flat = cli.flatten(config)
    for other in (
        "relay_tiny",
        "mdm_tiny",
        "diamond_tiny",
        "apt_tiny",
        "film_tiny",
        "autoencoder_tiny",
    ):
        flat |= cli.flatten(cli.load_config(str(ROOT / "configs" / f"{other}.py")))
    groups = {".".join(k.split(".")[:n]) for k in flat for n in range(1, k.count(".") + 1)}
    text = FENCE.sub("", page.read_text())
    for field in re.findall(r"`(?:--)?config\.([a-z][\w.]*)[`=]", text):
        if field not in ("json", "py"):
            assert field in flat or field in groups, f"config has no field {field}"


def test_errors_that_troubleshooting_quotes_exist():
    source = "".join(p.read_text() for p in (ROOT / "diffjax").rglob("*.py"))
    quoted = re.findall(r'\*\*"([^"]+)"', (DOCS / "troubleshooting.md").read_text())
    assert len(quoted) > 4
    for words in quoted:
        for part in words.split("..."):
            assert part.strip() in source, words


def test_the_readme_begins_with_a_picture_and_two_commands():
    text = (ROOT / "README.md").read_text()
    assert text.index("![") < text.index("```")
    train, test = (block.strip() for block in blocks(ROOT / "README.md", "sh")[:2])
    for line in (train, test):
        assert "\n" not in line and not line.endswith("\\")
    assert train.endswith(".venv/bin/python train.py") and "pip install -e ." in train
    assert " -m pytest -n 2" in test and "pip install -e '.[dev]'" in test


def slug(heading: str) -> str:
    """A heading's anchor, as Markdown's toc extension makes it."""
    text = re.sub(r"[`*]", "", heading).strip().lower()
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text)).strip("-")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=short)
def test_relative_links_resolve(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: no {target}"
        if DOCS in page.parents:
            assert DOCS in file.parents, f"{page.name}: {target} leads out of the site"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text()), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: no heading {target}"


def test_every_page_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def pages(node):
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [page for child in children for page in pages(child)]

    there = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
    assert sorted(pages(config["nav"])) == there


def test_every_public_module_is_in_the_reference():
    text = "".join(p.read_text() for p in (DOCS / "reference").glob("*.md"))
    named = set(re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE))
    for room in ("core", "nets", "data", "metrics", "weights", "run", "systems", "studies"):
        for path in (ROOT / "diffjax" / room).glob("*.py"):
            if path.stem != "__init__":
                assert f"diffjax.{room}.{path.stem}" in named, short(path)


CITATION = re.compile(r"([A-Z][\w-]+ (?:et al\.|& [A-Z]\w+)),? \(?((?:19|20)\d\d[a-z]?)")


def test_every_citation_is_in_the_bibliography():
    text = (DOCS / "bibliography.md").read_text()
    known = re.findall(r"^\| ([^|]*?\d{4}[a-z]?)\*? \|", text, re.MULTILINE)
    assert len(known) == len(set(known)) > 30
    source = [
        *PAGES,
        *(p for d in ("diffjax", "configs", "benchmarks") for p in (ROOT / d).rglob("*.py")),
    ]
    for path in source:
        flat = re.sub(r"\s*\n[\s#]*", " ", path.read_text())
        for names, year in CITATION.findall(flat):
            assert f"{names} {year}" in known, f"{short(path)}: {names} {year}"


def test_nothing_names_this_machine():
    """No absolute path, and no host of a package registry, in what a reader sees."""
    files = [*PAGES, *(ROOT / ".ci").glob("*"), ROOT / "mkdocs.yml", ROOT / "NOTICE"]
    registry = "|".join(("py" + "pi", "python" + "hosted", "registry\\."))
    for file in files:
        text = file.read_text()
        assert not re.search(rf"https?://\S*({registry})", text), file
        assert not re.search(r"(?<![\w.~/])/(work|home|root|Users)/", text), file
