"""The study of step counts: a Gaussian whose answer is known, and a tiny run from end to end."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sample
from diffjax.core import grids, processes, samplers
from diffjax.errors import UserError
from diffjax.metrics import frechet, intervals, judging
from diffjax.run import mesh as meshes
from diffjax.run import own_grid
from diffjax.run.system import Problem, System
from diffjax.studies import grid_search, steps, steps_report

STD, TOP = 0.5, 20.0


@dataclasses.dataclass(frozen=True)
class Request:
    steps: int = 8
    eta: float = 0.0
    grid: str = "edm"


def levels(request: Request) -> np.ndarray:
    own = own_grid.read(request.grid)
    return grids.karras(request.steps, 0.02, TOP) if own is None else own


def gaussian() -> System:
    """Data N(0, STD^2) in two dimensions; params is a factor of the denoiser, 1 is the best one."""
    process = processes.edm()
    denoiser = lambda params, x, t, cond: params * STD**2 / (STD**2 + t**2) * x

    def problem(params, keys, cond, request):
        normal, grid = samplers.draws(keys, (2,), process), levels(request)
        denoise = lambda x, t: denoiser(params, x, t, cond)
        return Problem(denoise, process, grid, grid[0] * normal(0), lambda k: normal(k + 1))

    def draw(params, keys, cond, request):
        given = problem(params, keys, cond, request)
        return {"x": samplers.ddim(*given.arguments, delta=samplers.posterior(request.eta))}

    def evaluate(source, metrics, net, **_):
        real = frechet.moments(source)
        fd = lambda x: frechet.frechet_distance(real, frechet.moments(x))
        return lambda outputs, seed: {"scores": {"fd": {"value": fd(outputs["x"])}}}

    nothing = lambda request, index: np.zeros(len(index), np.int32)
    return System(
        init=None, loss=None, request=Request(), condition=nothing, data=None, show=None,
        condition_like=lambda request, source, index: nothing(request, index), write=None,
        sample=draw, evaluate=evaluate, process=process, denoiser=denoiser, problem=problem,
    )  # fmt: skip


@pytest.fixture(scope="module")
def real():
    """Real examples whose moments are the Gaussian's own, exactly."""
    x = np.random.default_rng(0).normal(size=(2000, 2))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return STD * x


def result_std(count: int) -> float:
    """The standard deviation that DDIM's steps make of the start's, in closed form."""
    t = grids.karras(count, 0.02, TOP)
    kept = STD**2 / (STD**2 + t[:-1] ** 2)
    return TOP * np.prod(kept + t[1:] / t[:-1] * (1 - kept))


def run_study(real, params, against=None, counts=(2, 4, 8, 16, 32, 64), **how):
    system, mesh = gaussian(), meshes.make_mesh(meshes.LOCAL)
    runs = [steps.Run(system, jnp.float32(p), "") for p in params]
    others = [steps.Run(system, jnp.float32(p), "") for p in against] if against else runs
    judge = steps._judge(system, real, "fd", "moments", mesh)
    arms = steps._arms(Request(), list(counts), [])
    how = {"num": 400, "seed": 0, "batch": 400, "mesh": mesh, **how}
    return steps.study(runs, others, arms, arms[-1], judge, real, how, "fd", 0.1)


def test_the_scores_of_a_gaussian_are_its_closed_form(real):
    found = run_study(real, [1.0])
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(400))
    start = np.asarray(samplers.draws(keys, (2,), processes.edm())(0), np.float64)
    moments = frechet.moments(real)
    want = {
        count: frechet.frechet_distance(moments, frechet.moments(result_std(count) * start))
        for count in (2, 4, 8, 16, 32, 64)
    }
    got = {row["steps"]: row["score"]["value"] for row in found["arms"]}
    assert got == pytest.approx(want, rel=1e-3, abs=1e-6)
    assert found["arms"][0]["steps"] == 64  # the reference comes first
    words = {r["steps"]: r["no_worse"]["verdict"] for r in found["arms"] if "no_worse" in r}
    assert words[2] == words[4] == "does not hold"
    assert found["lower_is_better"] and found["s_floor"] == 0 and found["runs"] == 1
    assert found["enough"][""] == intervals.smallest(words)


def test_several_runs_are_seeds(real):
    # Denoisers that are 1 % off by training: their own errors are larger than those of 32 steps.
    found = run_study(real, [1.0, 1.05, 0.95])
    assert found["runs"] == 3
    row = {row["steps"]: row for row in found["arms"]}
    values = [run_study(real, [p], counts=(4, 64))["arms"][1]["score"]["value"] for p in (1.0,)]
    assert row[4]["score"]["low"] < values[0] < row[4]["score"]["high"]
    assert row[2]["no_worse"]["verdict"] == "does not hold"
    assert "alone" not in row[2]["no_worse"]
    two = run_study(real, [1.0, 1.01], counts=(2, 64))
    assert len(two["arms"][1]["no_worse"]["alone"]) == 2


def test_the_reference_may_be_other_runs(real):
    # A good network with 64 steps against a bad one with as many: better, and the other way round.
    def compare(p, q):
        system, mesh = gaussian(), meshes.make_mesh(meshes.LOCAL)
        runs = [[steps.Run(system, jnp.float32(x), "")] for x in (p, q)]
        judge = steps._judge(system, real, "fd", "moments", mesh)
        arms, reference = (steps._arms(Request(), [64], []) for _ in range(2))
        how = {"num": 400, "seed": 0, "batch": 400, "mesh": mesh}
        return steps.study(*runs, arms, reference[0], judge, real, how, "fd", 0.1)

    good, bad = compare(1.0, 0.7), compare(0.7, 1.0)
    assert good["enough"] == {"": 64} and bad["enough"] == {"": None}
    assert "no count below 64 was shown to be enough" in bad["answers"][0]
    assert "64 steps are enough" in good["answers"][0]


@pytest.mark.slow
def test_a_found_grid_is_better_than_an_even_one(real):
    system, mesh = gaussian(), meshes.make_mesh(meshes.LOCAL)
    request = Request(steps=48)
    (found,) = grid_search.search(
        system, jnp.float32(1.0), request, [5], condition=lambda i: np.zeros(len(i), np.int32),
        num=16, seed=1, batch=8, mesh=mesh,
    )  # fmt: skip
    assert len(found["grid"]) == 6 and set(found["grid"]) <= set(levels(request))
    assert found["error"] < found["even"]["error"]
    assert found["error"] <= found["first"]["error"] < found["even"]["error"]
    assert found["first"]["cost"] == pytest.approx(found["first"]["error"], rel=0.5)
    arms = steps._arms(Request(), [5, 48], [])
    arms += steps._grid_arms(Request(), {}, [found])
    judge = steps._judge(system, real, "fd", "moments", mesh)
    how = {"num": 400, "seed": 0, "batch": 400, "mesh": mesh}
    runs = [steps.Run(system, jnp.float32(1.0), "")]
    about = steps.study(runs, runs, arms, arms[1], judge, real, how, "fd", 0.1)
    (grid,) = about["grids"]
    assert grid["than_even"]["verdict"] == grid["than_schedule"]["verdict"] == "holds"
    assert "the grid found for 5 steps is better than the even one" in about["answers"]


def test_only_counts_below_the_reference_are_answers():
    row = lambda steps, word: {
        "steps": steps, "group": "", "score": {"value": 1.0, "low": 0.9, "high": 1.1},
        "no_worse": {"verdict": word, "margin": 0.1},
    }  # fmt: skip
    base = {"steps": 16, "group": "", "score": {"value": 1.0, "low": 0.9, "high": 1.1}}
    rows = [base, row(64, "undecided"), row(8, "holds"), row(4, "undecided")]
    about = {"reference": base, "arms": rows, "grids": [], "metric": "kid", "margin": 0.1}
    found = steps_report.answers({**about, "s_floor": 0.01})
    assert found["enough"] == {"": 8}
    assert found["answers"][0].endswith("no worse than 16 steps' 1 within 10%")
    assert "2 s_floor" in steps_report.answers({**about, "s_floor": 0.05})["answers"][0]


# ---- commands ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command(trained, tmp_path, capsys):
    argv = ["--workdir", str(trained), "--net", "pixels", "--num", "16", "--batch", "16"]
    argv += ["--steps", "2,3", "--search", "2", "--fine", "5", "--search_num", "8"]
    argv += ["--vary", "sampler=euler", "--out", str(tmp_path / "found")]
    assert steps.main(argv) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert said.splitlines()[-1].endswith("found.png") and found["answers"][0] in said
    assert [(row["steps"], row["group"]) for row in found["arms"]] == [
        (3, "sampler=euler"), (2, "sampler=euler"),
        (2, steps_report.SEARCHED), (2, steps_report.EVEN),
    ]  # fmt: skip
    assert found["net"] == "pixels" and found["ref"] == "tiny.npz"
    assert Image.open(tmp_path / "found.png").size[0] > 400
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "found.grid_2.json", "found.json", "found.png",
    ]  # fmt: skip
    # The grid that was found is one that sample.py takes.
    grid = tmp_path / "found.grid_2.json"
    assert own_grid.read(str(grid)).tolist() == found["search"][0]["grid"]
    out = tmp_path / "samples.npz"
    flags = ["--num", "16", "--batch", "16", "--grid", str(grid), "--out", str(out)]
    assert sample.main(["--workdir", str(trained), *flags, "--sampler", "euler"]) == 0
    assert np.load(out)["image"].shape == (16, 8, 8, 3)


@pytest.mark.parametrize("metric", ["fd", "precision", "accuracy"])
def test_judges_of_pictures_are_the_report_s(metric, tiny_arrays, tiny_data):
    from diffjax.data.sources import open_source
    from diffjax.metrics import features, report

    source = open_source(str(tiny_data))
    fake = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    outputs, every = {"image": fake, "label": np.zeros(30, np.int32)}, np.ones(30, bool)
    if metric == "accuracy":
        with pytest.raises(UserError, match="needs the classes"):
            judging.of_images(source, metric, "pixels")
        return
    judge = judging.of_images(source, metric, "pixels")
    want = report.image_scores(
        fake, tiny_arrays["images"], net=features.feature_net("pixels"), metrics=[metric]
    )
    statistic = judge.score(outputs)
    assert statistic(every) == pytest.approx(want["scores"][metric]["value"], rel=1e-6)
    keep = np.arange(30) % 3 > 0
    assert statistic(keep) == judge.score({"image": fake[keep]})(every[:20])
    assert judge.floor(10) >= 0 and judge.sign == (-1 if metric == "fd" else 1)
    assert metric != "fd" or judge.floor(10) > 1e-3  # of sets that are disjoint, and so differ


def test_accuracy_of_emoji():
    from diffjax.data.sources import open_source

    source = open_source("emoji")
    judge = judging.of_images(source, "accuracy", "emoji")
    outputs = {"image": np.stack([source[i]["image"] for i in range(12)])}
    outputs["label"] = np.asarray(source.labels[:12])
    assert judge.score(outputs)(np.ones(12, bool)) > 0.9 and 0 < judge.floor(50) < 0.1
    # Of as many as there are nothing would vary.
    assert judge.floor(len(source)) == judge.floor(len(source) // 2) > 0


@pytest.mark.parametrize(
    "words, fragment",
    [
        (["--steps", "4,x"], "--steps 4,x: step counts"),
        (["--search", "0"], "--search 0: step counts"),
        (["--search", "9", "--fine", "8"], "--search 9: must be from 1 to the 8"),
        (["--search", "2", "--fine", "1000000"], "--fine 1000000: at most 4096"),
        (["--search", "2", "--search_by", "dpp"], "did you mean 'dp'"),
        (["--search", "2", "--search_eta", "3"], "--search_eta 3"),
        (["--vary", "samplr=heun"], "did you mean 'sampler'"),
        (["--vary", "steps=2,3"], "steps has a flag of its own"),
        (["--vary", "sampler"], "write FIELD=VALUE"),
        (["--vary", "eta=a"], "--vary eta=a: takes float"),
        (["--vary", "sampler=hen"], "did you mean 'heun'"),
        (["--margin", "1.5"], "--margin 1.5"),
        (["--num", "4"], "at least 8 samples"),
        (["--metric", "fdd"], "did you mean 'fd'"),
        (["--out", "no/where"], "--out no/where"),
        (["--grid", "5,6"], "must decrease, to 0"),
        (["--grid", "5,0.6"], "decides the steps: name a schedule"),
        (["--grid", "5,x"], "--grid 5,x: numbers"),
        (["--against", "a", "b"], "no run directory a"),
    ],
)
def test_refusals(words, fragment, trained, capsys):
    given = ["--workdir", str(trained), "--net", "pixels", "--num", "8", "--steps", "2,3", *words]
    assert steps.main(given) == 2
    assert fragment in capsys.readouterr().err


def test_grids_of_one_s_own(tmp_path):
    assert own_grid.read("edm") is None and own_grid.read("") is None
    assert own_grid.read("5,0.5").tolist() == [5, 0.5, 0] == own_grid.read("5,0.5,0").tolist()
    times = np.array([80.0, 1 / 3, 0.1 + 0.2, 0.0])
    assert own_grid.read(own_grid.text(times)).tolist() == times.tolist()
    own_grid.write(times, tmp_path / "g.json", about="this")
    assert own_grid.read(str(tmp_path / "g.json")).tolist() == times.tolist()
    for text, words in [
        ('{"grid": "5"}', "holds no"), ('[5, 0]', "holds no"), ('{"grid": [1, true]}', "holds no"),
        ('{"grid": [' + 400 * "9" + "]}", "holds no"),
        ('{"grid": []}', "from 1 to"), ('{"grid": [NaN, 0]}', "times above 0"),
        ('{"grid": [1, 2]}', "must decrease"), ('{"grid": [1, -1]}', "must decrease"),
    ]:  # fmt: skip
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match=words):
            own_grid.read(str(tmp_path / "bad.json"))
    with pytest.raises(UserError, match="no such file"):
        own_grid.read(str(tmp_path / "none.json"))


def test_a_relay_visits_the_levels_it_is_given():
    from diffjax.systems.relay.request import Request as Relay
    from diffjax.systems.relay.request import check, noise_levels

    request = Relay(grid="0.8,0.4,0.1")
    check(request)
    assert noise_levels(request).tolist() == [0.8, 0.4, 0.1, 0]
    assert noise_levels(Relay())[0] < 0.9
    with pytest.raises(UserError, match="unknown --grid"):
        check(Relay(grid="vp"))


def test_edm_knows_which_levels_its_network_knows():
    from diffjax.systems.edm import preconditioning
    from diffjax.systems.edm.request import Request as Edm
    from diffjax.systems.edm.request import noise_levels

    narrow = preconditioning.make("ve", 0.5)
    assert noise_levels(Edm(grid="100,5,0.02"), narrow)[0].tolist() == [100, 5, 0.02, 0]
    for grid in "101,5,0.02", "100,5,0.01":
        with pytest.raises(UserError, match="the network knows those from 0.02 to 100"):
            noise_levels(Edm(grid=grid), narrow)


@pytest.mark.slow
def test_a_relay_s_steps(root, tmp_path, monkeypatch):
    import train

    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(root / "configs")
    for name in "relay_tiny_base", "relay_tiny":
        assert train.main(["--config", f"configs/{name}.py", "--config.steps=4"]) == 0
    argv = ["--workdir", "runs/relay_tiny", "--steps", "4,8", "--num", "16", "--batch", "16"]
    assert steps.main([*argv, "--search", "2", "--fine", "8", "--search_num", "8"]) == 0
    found = json.loads((tmp_path / "steps.json").read_text())
    assert len(found["arms"]) == 5 and found["search"][0]["grid"][0] < 0.9


def test_the_plot_and_table_of_a_result(real, tmp_path):
    found = run_study(real, [1.0], counts=(4, 64))
    found |= {"num": 400, "ref": "gaussian", "search": [], "workdirs": []}
    steps_report.write(tmp_path / "s", found)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.json", "s.png"]
    lines = steps_report.table(found).splitlines()
    assert len(lines) == 3 and "reference" in lines[1] and "does not hold" in lines[2]
