"""Tests what docs/claims.md says of EDM on CIFAR-10, on a run of configs/edm_cifar10_short.py.

    python benchmarks/cifar10_study.py sample RUN --test cifar10_test.npz --out DIR --seconds 300
    python benchmarks/cifar10_study.py score DIR --test cifar10_test.npz --train cifar10.npz \
        --net classifier:judge.safetensors

`sample` draws every arm from the same starts, 256 samples of each a round, until the seconds are
over, then more of the first arm; it needs the accelerator. `score` needs none: it turns the arms
into DIR/scores.json and prints the verdicts. The rules are those of docs/claims.md.
"""

import concurrent.futures
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from diffjax import systems
from diffjax.core import grids
from diffjax.errors import UserError, choose, command
from diffjax.metrics import features, frechet, kid, precision_recall
from diffjax.metrics.intervals import jackknife, verdict
from diffjax.metrics.kid import Kernels
from diffjax.run import cli, pictures, sampling
from diffjax.run import mesh as meshes

ARMS = {
    "H18": {"sampler": "heun", "steps": 18},
    "E35": {"sampler": "euler", "steps": 35},
    "M20": {"sampler": "dpmpp", "steps": 20},
    **{
        f"D{steps}-{eta}": {"sampler": "ddim", "steps": steps, "eta": float(eta)}
        for steps in (20, 100, 1000)
        for eta in (0, 1)
    },
}
OTHERS = [name for name in ARMS if name != "H18"]
LEVELS = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "guidance": 1.0, "churn": 0.0}
ROUND, ALL = 256, 10_000
# claim: (arm, reference, margin as a share of the reference's KID; None: "better than")
CLAIMS = {
    "EDM-1": ("D100-0", "D1000-0", 0.10),
    "EDM-3": ("D20-0", "D20-1", None),
    "EDM-4": ("H18", "E35", None),
    "EDM-5": ("H18", "D1000-0", 0.05),
    "EDM-7": ("M20", "H18", 0.05),
}


# ---- on the accelerator --------------------------------------------------------------------------


def sample(args) -> None:
    """Draws the arms into DIR/arms_*.npz, H18_*.npz and sampled.json."""
    begin, out, workdir = time.monotonic(), Path(args.out), Path(args.run)
    out.mkdir(parents=True, exist_ok=True)
    mesh = meshes.make_mesh(meshes.LOCAL)
    system, config = systems.load(workdir)
    params, which = sampling.load_params(system, workdir, mesh)
    rows, everywhere = meshes.rows(mesh), meshes.replicated(mesh)
    seed = jax.device_put(np.uint32(0), everywhere)
    about = {"run": config.name, "weights": which, "device": jax.devices()[0].device_kind}

    def inputs(start):
        index = np.arange(start, start + ROUND)
        labels = system.condition(system.request, index)
        return seed, jax.device_put(index.astype(np.int32), rows), jax.device_put(labels, rows)

    def compiled(name):
        request = type(system.request)(**{**LEVELS, **ARMS[name]})
        return sampling.sampler(system, request, mesh).lower(params, *inputs(0)).compile()

    # The first compilation times kernels; the others find its choices and can run side by side.
    programs = {"H18": compiled("H18")}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rest = {name: pool.submit(compiled, name) for name in OTHERS}
        programs.update({name: future.result() for name, future in rest.items()})
    about["compiled_s"] = time.monotonic() - begin
    print(f"compiled after {about['compiled_s']:.0f} s", flush=True)
    about["bfloat16"] = rounding(config, system.assets, params, args.test)
    print(about["bfloat16"], flush=True)

    drawn = {name: [] for name in ARMS}
    seconds = {name: [] for name in ARMS}

    def draw(name):
        start, clock = ROUND * len(drawn[name]), time.monotonic()
        outputs = jax.block_until_ready(programs[name](params, *inputs(start)))
        seconds[name].append(time.monotonic() - clock)
        drawn[name].append(jax.device_get(outputs))

    def save(file, names):
        joined = {n: np.concatenate([o["image"] for o in drawn[n]]) for n in names}
        np.savez(out / file, **joined)

    draw("H18")  # the first call of a program is slower
    drawn["H18"].clear(), seconds["H18"].clear()
    left = lambda: args.seconds - (time.monotonic() - begin)
    cost, tail = 0.0, 0.0
    while left() > cost + tail and len(drawn["H18"]) * ROUND < 2048:
        clock = time.monotonic()
        for name in ARMS:
            draw(name)
        for i in range(2):  # after every round, as the machine may go
            save(f"arms_{i}.npz", OTHERS[i::2])
        cost = time.monotonic() - clock
        tail = 8.0 + seconds["H18"][-1] * (ALL / ROUND - len(drawn["H18"]))
        print(f"round {len(drawn['H18'])}: {cost:.0f} s, {left():.0f} s left", flush=True)
    about["samples"] = {name: ROUND * len(parts) for name, parts in drawn.items()}
    while left() > 8.0 and len(drawn["H18"]) * ROUND < ALL:
        draw("H18")
    about["all"] = min(ALL, len(drawn["H18"]) * ROUND)
    images = np.concatenate([o["image"] for o in drawn["H18"]])
    for i, half in enumerate(np.array_split(images, 2)):
        np.savez(out / f"H18_{i}.npz", H18=half)
    about["seconds"] = {name: round(float(np.median(s)), 4) for name, s in seconds.items()}
    (out / "sampled.json").write_text(json.dumps(about, indent=1))
    print(json.dumps(about), flush=True)
    if args.profile:
        with jax.profiler.trace(args.profile):
            draw("H18")


def rounding(config, assets, params, test: str) -> dict:
    """EDM-6: relative L2 errors of D and of F in the compute type, at each level of 18 steps."""
    exact = ml_collections.ConfigDict(config.to_dict())
    exact.network.dtype = "float32"
    nets = [systems.make(c, assets).denoiser for c in (config, exact)]
    with np.load(test) as data:
        some = np.random.default_rng(0).permutation(len(data["images"]))[:256]
        x0, label = data["images"][some] / np.float32(127.5) - 1, data["labels"][some]
    noise = jax.random.normal(jax.random.key(0), x0.shape)
    sigma_data = config.diffusion.sigma_data

    @jax.jit
    def errors(params, sigma):
        x = x0 + sigma * noise
        low = nets[0](params, x, sigma, label)
        with jax.default_matmul_precision("highest"):
            high = nets[1](params, x, sigma, label)
        raw = high - sigma_data**2 / (sigma**2 + sigma_data**2) * x  # c_out F
        gap, norm = jnp.linalg.norm(low - high), jnp.linalg.norm
        return gap / norm(high), gap / norm(raw)

    levels = grids.karras(18, 0.002, 80.0, 7.0)[:-1]
    found = np.array([[float(e) for e in errors(params, np.float32(s))] for s in levels])
    return {"sigma": levels.tolist(), "D": found[:, 0].tolist(), "F": found[:, 1].tolist()}


# ---- anywhere ------------------------------------------------------------------------------------


def claims(kernels: dict, s_floor) -> dict:
    """The verdicts on CLAIMS and on EDM-2, from {arm: Kernels} and {samples: s_floor}.

    Each on as many samples as all its arms have.
    """
    found = {}
    for name, (arm, reference, share) in CLAIMS.items():
        a, b = kernels[arm], kernels[reference]
        n = min(a.n, b.n)
        better = lambda k: b(k) - a(k)  # noqa: B023
        loss = lambda k: -better(k) - max(share * b(k), 2 * s_floor[n])  # noqa: B023
        test, sign = (better, 1) if share is None else (loss, -1)
        difference = jackknife(lambda k: a(k) - b(k), n)  # noqa: B023
        found[name] = {"n": n, "difference": difference, **verdict(jackknife(test, n), sign)}
    four = {f"{steps}-{eta}": kernels[f"D{steps}-{eta}"] for steps in (100, 1000) for eta in (0, 1)}
    n = min(kernel.n for kernel in four.values())
    gap = lambda k, eta: four[f"100-{eta}"](k) - four[f"1000-{eta}"](k)
    found["EDM-2"] = {"n": n, **verdict(jackknife(lambda k: gap(k, 1) - gap(k, 0), n), 1)}
    return found


def scores(x, y) -> dict:
    """KID, FD, precision and recall of features x against y."""
    n = min(len(x), len(y))
    distance = frechet.frechet_distance(frechet.moments(x), frechet.moments(y[:n]))
    precision = precision_recall.precision(y[:n], x[:n])
    recall = precision_recall.precision(x[:n], y[:n])  # the same with the sets' parts exchanged
    return {"kid": kid.mmd2(x, y).value, "fd": distance, "precision": precision, "recall": recall}


def score(args) -> None:
    """Scores the arms of DIR into DIR/scores.json and DIR/grid.png."""
    folder = Path(args.run)
    about = json.loads((folder / "sampled.json").read_text())
    drawn = {}
    for file in ("arms_0", "arms_1"):
        with np.load(folder / f"{file}.npz", allow_pickle=False) as arms:
            drawn.update(arms)
    every = np.concatenate([load(folder / f"H18_{i}.npz", "H18") for i in range(2)])[:ALL]
    most = max(len(images) for images in drawn.values())
    arms = {"H18": every[:most], **drawn}
    random = np.random.default_rng(0)
    test = load(args.test)[random.permutation(10_000)]
    train = load(args.train)[random.permutation(50_000)[:10_000]]
    noisy = test[:5000] + 8 * random.standard_normal(test[:5000].shape)
    noisy = np.clip(np.round(noisy), 0, 255).astype(np.uint8)
    result = {"sampled": about, "nets": {}}
    for net_name in (args.net, "pixels"):
        net = features.feature_net(net_name)
        see = lambda images: features.extract(net, images, 256)  # noqa: B023
        real, seen = see(test), {name: see(images) for name, images in arms.items()}
        s_floor = {n: kid.floor_spread(real, n) for n in {len(x) for x in seen.values()}}
        spoiled = kid.mmd2(see(noisy), real[5000:]).value
        kernels = {name: Kernels(x, real) for name, x in seen.items()}
        for name, x in seen.items():  # the sums here against the library's
            np.testing.assert_allclose(
                kernels[name](np.ones(len(x), bool)), kid.mmd2(x, real).value, rtol=1e-4, atol=1e-6
            )
        full = see(every)
        result["nets"][net.name] = {
            "version": net.version,
            "s_floor": s_floor,
            "spoiled": spoiled,
            "sees_spoiled": spoiled > 5 * max(s_floor.values()),
            "arms": {name: scores(x, real) for name, x in seen.items()},
            "all": {"test": scores(full, real), "train": scores(full, see(train))},
            "floor": {"test halves": scores(real[:5000], real[5000:])},
            "train against test": scores(see(train), real),
            "claims": claims(kernels, s_floor),
        }
    exact = arms["D1000-0"].astype(np.float64)
    rms = lambda name: float(np.sqrt(np.mean((arms[name][: len(exact)] - exact) ** 2)))
    result["rms_from_D1000-0"] = {name: rms(name) for name in arms}
    worst = max(about["bfloat16"]["D"])
    result["EDM-6"] = {"worst": worst, "verdict": "holds" if worst <= 1e-2 else "does not hold"}
    (folder / "scores.json").write_text(json.dumps(result, indent=1))
    names = [str(name) for name in np.load(args.test)["class_names"]]
    labels = np.arange(len(every[:100])) % len(names)  # all classes in turn, as they were asked for
    pictures.labelled_grid(every[:100], labels, names, folder / "grid.png")
    print(json.dumps(result["nets"], indent=1))


def load(path, name: str = "images") -> np.ndarray:
    with np.load(path, allow_pickle=False) as data:
        return data[name]


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="cifar10_study.py", description=__doc__.splitlines()[0])
    parser.add_argument("what", help="sample or score")
    parser.add_argument("run", help="sample: the run directory; score: the folder of samples")
    parser.add_argument("--test", required=True, help="the test split, .npz")
    parser.add_argument("--train", default="", help="score: the training split, .npz")
    parser.add_argument("--net", default="pixels", help="score: the judge")
    parser.add_argument("--out", default="", help="sample: a folder for the samples")
    parser.add_argument("--seconds", type=float, default=300.0, help="sample: time for all of it")
    parser.add_argument("--profile", default="", help="sample: record one call of H18 here")
    args = parser.parse(argv)
    do = choose(args.what, {"sample": sample, "score": score}, "what to do")
    if not Path(args.test).is_file():
        raise UserError(f"--test {args.test}: no such file")
    do(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
