"""One table of mistakes: each gets one line that names it, status 2, and leaves nothing behind."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MODULES = {
    "train": "train",
    "sample": "sample",
    "evaluate": "diffjax.evaluate",
    "prepare": "diffjax.prepare",
}


class Place:
    """A folder with what a mistake needs, and the words of command lines."""

    def __init__(self, root: Path, trained: Path, tiny_config: list[str], tiny_data: Path):
        self.root, self.trained, self.config, self.data = root, trained, tiny_config, tiny_data

    def file(self, name: str, content: str | bytes = "") -> str:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def train(self, *flags: str, workdir: str = "new") -> list[str]:
        return [*self.config, "--workdir", str(self.root / workdir), *flags]

    def config_file(self, text: str) -> list[str]:
        return ["--config", self.file("mine.py", text), "--workdir", str(self.root / "new")]

    def npz(self, **arrays) -> str:
        np.savez(self.root / "mine.npz", **arrays)
        return f"--config.data.path={self.root / 'mine.npz'}"

    def run(self, *without: str) -> Path:
        """A copy of the trained run."""
        ignore = shutil.ignore_patterns(*without)
        return Path(shutil.copytree(self.trained, self.root / "run", ignore=ignore))

    def sample(self, *flags: str) -> list[str]:
        return ["--workdir", str(self.trained), "--out", str(self.root / "out.png"), *flags]

    def of_run(self, name: str, content: str | bytes, *without: str) -> list[str]:
        """Flags to use a copy of the run in which one file holds something else."""
        run = self.run(*without)
        self.file(f"run/{name}", content)
        return ["--workdir", str(run)]

    def changed_config(self, change) -> list[str]:
        config = json.loads((self.trained / "config.json").read_text())
        change(config)
        return self.of_run("config.json", json.dumps(config))

    def cut_checkpoint(self, part: str) -> Path:
        """A copy of the run: the large files of the newest checkpoint's `part` are cut short."""
        run = self.run()
        cut = 0
        for path in (run / "checkpoints" / "6" / part).rglob("*"):
            if path.is_file() and path.stat().st_size > 2:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                cut += 1
        assert cut
        return run


GOOD = "from ml_collections import ConfigDict\n"
IMAGES = np.zeros((4, 8, 8, 3), np.uint8)
# (what is wrong, which command, what the line says, how to make it)
TABLE = [
    # ---- flags and overrides
    ("unknown flag", "train", r"--wrokdir.*did you mean '--workdir'",
     lambda p: ["--wrokdir", "x"]),
    ("a word", "train", "unexpected argument 'steps'", lambda p: p.train("steps=5")),
    ("flag without a value", "train", "--workdir", lambda p: ["--workdir"]),
    ("unknown field", "train", r"no field 'stepz' \(did you mean 'steps'",
     lambda p: p.train("--config.stepz=5")),
    ("field without its group", "train", r"'path' \(did you mean 'data.path'",
     lambda p: p.train("--config.path=x")),
    ("field of a field", "train", "no field 'steps.more'",
     lambda p: p.train("--config.steps.more=1")),
    ("a group as a field", "train", "'data' is a group: set one of .*data.path",
     lambda p: p.train("--config.data=x")),
    ("word for a number", "train", "'steps' takes int, not 'many'",
     lambda p: p.train("--config.steps=many")),
    ("fraction for a whole", "train", "'batch_size' takes int, not '8.5'",
     lambda p: p.train("--config.batch_size=8.5")),
    ("number for a truth", "train", "'data.balanced' takes bool",
     lambda p: p.train("--config.data.balanced=1")),
    ("not a number", "train", "'optimizer.eps' takes float, not 'nan'",
     lambda p: p.train("--config.optimizer.eps=nan")),
    ("code for a number", "train", "'steps' takes int",
     lambda p: p.train("--config.steps=__import__('os').getpid()")),
    ("override without a value", "train", "--config.steps needs a value",
     lambda p: p.train("--config.steps")),
    ("profile", "train", "--profile_steps 5: write FIRST:LAST",
     lambda p: p.train("--profile_steps", "5")),
    ("profile backwards", "train", "--profile_steps 9:3",
     lambda p: p.train("--profile_steps", "9:3")),
    ("distributed", "train", "--distributed here: 'auto' or HOST:PORT,PROCESSES,INDEX",
     lambda p: p.train("--distributed", "here")),
    ("distributed index", "train", "--distributed h:1,2,2: INDEX",
     lambda p: p.train("--distributed", "h:1,2,2")),
    ("distributed address", "train", "--distributed h,1,0.*HOST:PORT",
     lambda p: p.train("--distributed", "h,1,0")),
    ("distributed port", "train", "--distributed h:port,1,0.*HOST:PORT",
     lambda p: p.train("--distributed", "h:port,1,0")),
    # ---- config files
    ("no config file", "train", r"no config file .*configs/edm_tny.py .*edm_tiny.py",
     lambda p: ["--config", str(Path(p.config[1]).with_name("edm_tny.py"))]),
    ("config raises", "train", "mine.py: ZeroDivisionError",
     lambda p: p.config_file("def get_config():\n    return 1 / 0\n")),
    ("config raises at length", "train", "mine.py: ValueError: one two",
     lambda p: p.config_file("raise ValueError('one\\ntwo')")),
    ("config is no Python", "train", "mine.py: SyntaxError", lambda p: p.config_file("def (")),
    ("config without get_config", "train", "mine.py: .*get_config", lambda p: p.config_file("")),
    ("config leaves", "train", "mine.py: .*SystemExit",
     lambda p: p.config_file("import sys\nsys.exit(0)\n")),
    ("config is a dict", "train", "mine.py: .*must return an ml_collections.ConfigDict",
     lambda p: p.config_file("def get_config():\n    return {}\n")),
    ("config is empty", "train", "lacks the field 'system'",
     lambda p: p.config_file(GOOD + "def get_config():\n    return ConfigDict()\n")),
    ("config of one field", "train", "lacks the field",
     lambda p: p.config_file(GOOD + "def get_config():\n    return ConfigDict({'system': 'edm'})")),
    # ---- values
    ("system", "train", "config.system 'edn'.*did you mean 'edm'",
     lambda p: p.train("--config.system=edn")),
    ("width of a power average", "train", "lacks the field 'relative_std'",
     lambda p: p.train("--config.ema.ema.kind=power")),
    ("augmentation that is not told", "train", "kind unet_small cannot be told",
     lambda p: p.train("--config.augment.probability=0.1")),
    ("network", "train", "config.network.kind 'unet'",
     lambda p: p.train("--config.network.kind=unet")),
    ("dtype", "train", "config.network.dtype 'float16'",
     lambda p: p.train("--config.network.dtype=float16")),
    ("widths", "train", "config.network.widths", lambda p: p.train("--config.network.widths=(7,)")),
    ("width of letters", "train", "config.network.widths",
     lambda p: p.train("--config.network.widths=('a',)")),
    ("patch", "train", "config.network.patch", lambda p: p.train("--config.network.patch=0")),
    ("ema kind", "train", "config.ema.ema.kind 'warm'.*did you mean 'warmup'",
     lambda p: p.train("--config.ema.ema.kind=warm")),
    ("ema decay", "train", "config.ema.ema: .*decay 1.5",
     lambda p: p.train("--config.ema.ema.decay=1.5")),
    ("schedule", "train", "config.optimizer.schedule 'cos'",
     lambda p: p.train("--config.optimizer.schedule=cos")),
    ("learning rate", "train", "config.optimizer.learning_rate",
     lambda p: p.train("--config.optimizer.learning_rate=0")),
    ("b1", "train", "config.optimizer.b1 1.0", lambda p: p.train("--config.optimizer.b1=1")),
    ("clip", "train", "config.optimizer.clip -1.0",
     lambda p: p.train("--config.optimizer.clip=-1")),
    ("steps", "train", "config.steps 0", lambda p: p.train("--config.steps=0")),
    ("steps of a dry run", "train", "config.steps 0",
     lambda p: p.train("--config.steps=0", "--dry_run")),
    ("log_every", "train", "config.log_every 0", lambda p: p.train("--config.log_every=0")),
    ("seed", "train", "config.seed -1", lambda p: p.train("--config.seed=-1")),
    ("time", "train", "config.time_budget -1", lambda p: p.train("--config.time_budget=-1")),
    ("label dropout", "train", "config.diffusion.label_dropout",
     lambda p: p.train("--config.diffusion.label_dropout=1")),
    ("sigma_data", "train", "config.diffusion.sigma_data",
     lambda p: p.train("--config.diffusion.sigma_data=0")),
    ("preconditioning", "train", "config.diffusion.precond 'edn'.*did you mean 'edm'",
     lambda p: p.train("--config.diffusion.precond=edn")),
    ("times", "train", "config.diffusion.times 'normal'.*did you mean 'lognormal'",
     lambda p: p.train("--config.diffusion.times=normal")),
    ("sampling", "train", "steps 0", lambda p: p.train("--config.sampling.steps=0")),
    ("batch", "train", "config.batch_size 12 does not divide over 8",
     lambda p: p.train("--config.batch_size=12")),
    ("accumulate", "train", "config.batch_size 8 .*config.accumulate 3",
     lambda p: p.train("--config.accumulate=3")),
    ("mesh", "train", "config.mesh data=3 .* 8 devices", lambda p: p.train("--config.mesh.data=3")),
    ("mesh of nothing", "train", "config.mesh", lambda p: p.train("--config.mesh.fsdp=0")),
    # ---- data
    ("no data", "train", "no such file.*did you mean 'emoji'",
     lambda p: p.train("--config.data.path=emojy")),
    ("data path empty", "train", "config.data.path is empty",
     lambda p: p.train("--config.data.path=")),
    ("data are text", "train", "mine.txt: not a zip file",
     lambda p: p.train(f"--config.data.path={p.file('mine.txt', 'hello')}")),
    ("data are cut short", "train", "mine.npz",
     lambda p: p.train(
         f"--config.data.path={p.file('mine.npz', p.data.read_bytes()[:3000])}")),
    ("no images", "train", "mine.npz: has no array 'images'",
     lambda p: p.train(p.npz(pictures=IMAGES))),
    ("float images", "train", "mine.npz.*float64",
     lambda p: p.train(p.npz(images=IMAGES / 255))),
    ("labels of another length", "train", "mine.npz: labels must be",
     lambda p: p.train(p.npz(images=IMAGES, labels=np.arange(3)))),
    ("size", "train", "8x8 and image_size is 16",
     lambda p: p.train("--config.data.image_size=16")),
    ("images do not halve", "train", "8x8 do not divide by 16.*config.network.patch",
     lambda p: p.train("--config.network.widths=(8,8,8,8)")),
    # ---- the run directory
    ("workdir is a file", "train", "here is a file", lambda p: p.train(workdir="here")),
    ("workdir in a file", "train", "here/run: Not a directory",
     lambda p: p.train(workdir="here/run")),
    ("workdir of something else", "train", "'thesis.tex' and is no run directory",
     lambda p: [p.file("docs/thesis.tex"), p.train(workdir="docs")][1]),
    ("another config", "train", "seed 0 -> 1; steps 6 -> 9",
     lambda p: [p.run(), p.train("--config.seed=1", "--config.steps=9", workdir="run")][1]),
    ("config.json is no JSON", "train", "run/config.json: not a run's config",
     lambda p: [p.of_run("config.json", "{"), p.train(workdir="run")][1]),
    ("checkpoint cut short", "train", "checkpoints/6: this checkpoint cannot be read",
     lambda p: [p.cut_checkpoint("state"), p.train(workdir="run")][1]),
    ("meta cut short", "train", "checkpoints/6: this checkpoint cannot be read",
     lambda p: [p.cut_checkpoint("meta"), p.train(workdir="run")][1]),
    ("meta of something else", "train", "checkpoints/6: this checkpoint cannot be read",
     lambda p: [p.of_run("checkpoints/6/meta/metadata", "{}"), p.train(workdir="run")][1]),
    # ---- fine-tuning
    ("init_from nothing", "train", "nothing.safetensors: no such weights file",
     lambda p: p.train("--init_from", str(p.root / "nothing.safetensors"))),
    ("init_from text", "train", "mine.safetensors: not a safetensors file",
     lambda p: p.train("--init_from", p.file("mine.safetensors", "hello"))),
    ("init_from itself", "train", "--init_from is the workdir itself",
     lambda p: p.train("--init_from", str(p.root / "new"))),
    ("init_from a folder", "train", "docs is no run directory",
     lambda p: p.train("--init_from", str(Path(p.file("docs/thesis.tex")).parent))),
    ("init_from an empty run", "train", "holds no checkpoint",
     lambda p: p.train("--init_from", str(p.run("checkpoints", "*.safetensors")))),
    ("init_from another network", "train", "'conv_in/bias' has shape .8,., the network wants .16,.",
     lambda p: p.train("--init_from", str(p.trained), "--config.network.widths=(16,)")),
    # ---- sample.py: which run
    ("no run", "sample", "no run directory .*trianed.*did you mean '.*/trained'",
     lambda p: ["--workdir", str(p.trained.with_name("trianed"))]),
    ("run is a file", "sample", "here", lambda p: ["--workdir", str(p.root / "here")]),
    ("no run directory", "sample", "docs is no run directory",
     lambda p: ["--workdir", str(Path(p.file("docs/thesis.tex")).parent)]),
    ("config.json cut short", "sample", "run/config.json: not a run's config",
     lambda p: p.of_run("config.json", (p.trained / "config.json").read_bytes()[:100])),
    ("config.json is a list", "sample", "run/config.json: not a run's config",
     lambda p: p.of_run("config.json", "[]")),
    ("config.json is binary", "sample", "run/config.json: not a run's config",
     lambda p: p.of_run("config.json", b"\xff\xfe\x00")),
    ("config.json lacks a field", "sample", "lacks the field 'diffusion.sigma_data'",
     lambda p: p.changed_config(lambda c: c["diffusion"].pop("sigma_data"))),
    ("config.json lacks a group", "sample", "network",
     lambda p: p.changed_config(lambda c: c.pop("network"))),
    ("config.json has another type", "sample", "sigma_data takes float, not 'x'",
     lambda p: p.changed_config(lambda c: c["diffusion"].update(sigma_data="x"))),
    ("assets are gone", "sample", "assets/data.json",
     lambda p: ["--workdir", str(p.run("assets"))]),
    ("assets cut short", "sample", "assets/data.json",
     lambda p: p.of_run("assets/data.json", '{"image_shape": [8,')),
    ("assets of another shape", "sample", "assets/data.json: image_shape",
     lambda p: p.of_run("assets/data.json", '{"image_shape": 8, "class_names": []}')),
    ("assets of other names", "sample", "assets/data.json: class_names",
     lambda p: p.of_run("assets/data.json", '{"image_shape": [8, 8, 3], "class_names": 3}')),
    # ---- sample.py: which weights
    ("nothing trained", "sample", "holds no checkpoint and no weights.safetensors yet",
     lambda p: ["--workdir", str(p.run("checkpoints", "*.safetensors"))]),
    ("no such step", "sample", "no checkpoint of step 5; it has 3, 6",
     lambda p: p.sample("--step", "5")),
    ("no such ema", "sample", "--ema 'emma'.*did you mean 'ema'",
     lambda p: p.sample("--ema", "emma")),
    ("average of no width", "sample", "--ema posthoc:x: write posthoc:STD",
     lambda p: p.sample("--ema", "posthoc:x")),
    ("average of no averages", "sample", "no average of kind power",
     lambda p: p.sample("--ema", "posthoc:0.1")),
    ("step of weights alone", "sample", "holds only weights.safetensors",
     lambda p: ["--workdir", str(p.run("checkpoints")), "--step", "6"]),
    ("weights cut short", "sample", "run/weights.safetensors: not a safetensors file",
     lambda p: p.of_run(
         "weights.safetensors", (p.trained / "weights.safetensors").read_bytes()[:999],
         "checkpoints")),
    ("checkpoint cut short", "sample", "checkpoints/6: this checkpoint cannot be read",
     lambda p: ["--workdir", str(p.cut_checkpoint("state"))]),
    ("meta of something else", "sample", "checkpoints/6: this checkpoint cannot be read",
     lambda p: p.of_run("checkpoints/6/meta/metadata", "{}")),
    ("checkpoint of another network", "sample", "'conv_in/bias' has shape .8,.",
     lambda p: p.changed_config(lambda c: c["network"].update(widths=[16]))),
    # ---- sample.py: what to draw, and where to
    ("sampler", "sample", "--sampler 'huen'.*did you mean 'heun'",
     lambda p: p.sample("--sampler", "huen")),
    ("class", "sample", "no class 'rad'.*did you mean 'red'", lambda p: p.sample("--cond", "rad")),
    ("sampler steps", "sample", "--steps 0", lambda p: p.sample("--steps", "0")),
    ("guidance", "sample", "--guidance nan", lambda p: p.sample("--guidance", "nan")),
    ("guidance of letters", "sample", "--guidance.*'much'",
     lambda p: p.sample("--guidance", "much")),
    ("churn's range", "sample", "--s_min 3 is above --s_max 2",
     lambda p: p.sample("--s_min", "3", "--s_max", "2")),
    ("guidance interval", "sample", "--guidance_min 3 is above --guidance_max 2",
     lambda p: p.sample("--guidance_min", "3", "--guidance_max", "2")),
    ("levels", "sample", "--grid 'vpp'", lambda p: p.sample("--grid", "vpp")),
    ("guide", "sample", "no run directory .*trianed.*did you mean '.*trained'",
     lambda p: p.sample("--autoguide", str(p.trained.with_name("trianed")))),
    ("guide that is a file", "sample", "config.json is a file, not a run directory",
     lambda p: p.sample("--autoguide", str(p.trained / "config.json"))),
    ("guide of nothing yet", "sample", "holds no checkpoint",
     lambda p: p.sample("--autoguide", str(p.run("checkpoints", "*.safetensors")))),
    ("guide's step", "sample", "no checkpoint of step 5; it has 3, 6",
     lambda p: p.sample("--autoguide", str(p.trained), "--autoguide_step", "5")),
    ("guide in a config", "sample", "config.sampling.autoguide",
     lambda p: p.changed_config(lambda c: c["sampling"].update(autoguide="runs/x"))),
    ("num", "sample", "--num.*'0' is not a whole number", lambda p: p.sample("--num", "0")),
    ("batch", "sample", "--batch.*'-8' is not a whole number", lambda p: p.sample("--batch=-8")),
    ("sampling seed", "sample", "--seed -1", lambda p: p.sample("--seed", "-1")),
    ("unknown sampling flag", "sample", "--guidence.*did you mean '--guidance'",
     lambda p: p.sample("--guidence", "2")),
    ("out ending", "sample", "--out .*out.jpg: ends in .png",
     lambda p: p.sample("--out", str(p.root / "new" / "out.jpg"))),
    ("out in a file", "sample", "--out .*here/out.png",
     lambda p: p.sample("--out", str(p.root / "here" / "out.png"))),
    ("out folder is a file", "sample", "--out .*here",
     lambda p: p.sample("--out", str(p.root / "here"))),
    ("out picture is a folder", "sample", "--out .*folder.png",
     lambda p: p.sample("--out", str(Path(p.file("folder.png/x")).parent))),
    # ---- evaluate
    ("metric", "evaluate", "metric 'kidd'.*did you mean 'kid'",
     lambda p: ["--workdir", str(p.trained), "--metrics", "fd,kidd"]),
    ("no metric", "evaluate", "--metrics is empty",
     lambda p: ["--workdir", str(p.trained), "--metrics", ""]),
    ("feature net", "evaluate", "feature net 'emojis'.*did you mean 'emoji'",
     lambda p: ["--workdir", str(p.trained), "--net", "emojis"]),
    ("metric that a net has not", "evaluate", "'is' .*'pixels'",
     lambda p: ["--workdir", str(p.trained), "--net", "pixels", "--metrics", "is"]),
    ("reference", "evaluate", "no such file",
     lambda p: ["--workdir", str(p.trained), "--ref", str(p.root / "none.npz")]),
    ("split", "evaluate", "no split 'tset'",
     lambda p: ["--workdir", str(p.trained), "--split", "tset"]),
    ("reference of other classes", "evaluate", "emoji has other classes",
     lambda p: ["--workdir", str(p.trained), "--ref", "emoji", "--net", "pixels", "--num", "8"]),
    ("few samples", "evaluate", "'fd' needs at least 2",
     lambda p: ["--workdir", str(p.trained), "--num", "1", "--net", "pixels", "--metrics", "fd"]),
    # ---- prepare
    ("no source", "prepare", "none: no such file",
     lambda p: [str(p.root / "none"), "--size", "8", "--out", str(p.root / "out.zip")]),
    ("no pictures", "prepare", "docs",
     lambda p: [str(Path(p.file("docs/thesis.tex")).parent), "--size", "8", "--out",
                str(p.root / "out.zip")]),
    ("one unreadable picture", "prepare", "a.png",
     lambda p: [str(Path(p.file("docs/a.png", "x")).parent), "--size", "8", "--out",
                str(p.root / "out.zip"), "--on-error", "stop"]),
    ("no size", "prepare", "--size", lambda p: [str(p.root), "--out", str(p.root / "out.zip")]),
    ("size 0", "prepare", "--size.*'0'",
     lambda p: [str(p.root), "--size", "0", "--out", str(p.root / "out.zip")]),
    ("prepared ending", "prepare", "--out .*out.tar: end it with .zip or .npz",
     lambda p: [str(p.root), "--size", "8", "--out", str(p.root / "out.tar")]),
    ("prepared before", "prepare", "--out .*here.npz exists; add --overwrite",
     lambda p: [str(p.root), "--size", "8", "--out", p.file("here.npz")]),
]  # fmt: skip


def listing(folder: Path) -> dict:
    """Every file with its content, every folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


@pytest.fixture
def place(tmp_path, monkeypatch, trained, tiny_config, tiny_data):
    monkeypatch.chdir(tmp_path)
    made = Place(tmp_path, trained, tiny_config, tiny_data)
    made.file("here", "a file")
    return made


@pytest.mark.parametrize(
    "command, fragment, build",
    [row[1:] for row in TABLE],
    ids=[f"{row[1]}: {row[0]}" for row in TABLE],
)
def test_one_line(place, capfd, command, fragment, build):
    argv = build(place)
    main = importlib.import_module(MODULES[command]).main
    before, trained = listing(place.root), listing(place.trained)
    capfd.readouterr()
    status = main(argv)
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert status == 2
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert re.search(fragment, lines[0]), lines[0]
    assert len(lines[0]) < 600 and not out
    assert listing(place.root) == before and listing(place.trained) == trained


@pytest.mark.parametrize(
    "words",
    [
        ["train.py", "--config.stepz=5"],
        ["sample.py", "--workdir", "nowhere"],
        ["-m", "diffjax.evaluate", "--workdir", "nowhere"],
    ],
    ids=["train", "sample", "evaluate"],
)
def test_as_a_person_sees_it(words, root, tmp_path):
    if words[0].endswith(".py"):
        words = [str(root / words[0]), *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr)
    assert not list(tmp_path.iterdir())


def test_debug_shows_where(place):
    import train
    from diffjax.errors import UserError

    with pytest.raises(UserError):
        train.main([*place.train("--config.stepz=5"), "--debug"])


def test_the_table_is_long_enough_and_says_each_thing_once():
    assert len(TABLE) >= 30
    names = [row[:2] for row in TABLE]
    assert len(set(names)) == len(names)
