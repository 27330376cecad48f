"""A relay stage as a base: its own path against closed forms, and where its samples start."""

import dataclasses

import apt_runs
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sample
import train
from diffjax import nets, systems
from diffjax.core import patches, processes
from diffjax.errors import UserError
from diffjax.run import cli, sampling
from diffjax.run import mesh as meshes
from diffjax.systems.apt import alternation, bases, consistency, multistep, own_path, timesteps

TOP = 0.9
BLUR = processes.relay_blur(3.0, 0.93)


def blurred(patch=4, block=0.0):
    return processes.blurred(BLUR, patch, block=block)


# ---- the path ------------------------------------------------------------------------------------


class Gaussian:
    """Pictures 4x4 whose DCT coefficients are independent, of mean m and deviation s."""

    def __init__(self):
        random = np.random.default_rng(0)
        self.process = blurred()
        self.m = random.normal(0, 0.3, (1, 4, 4, 1)).astype(np.float32)
        self.s = random.uniform(0.2, 1.0, (1, 4, 4, 1)).astype(np.float32)

    def apart(self, x, t):
        """(coefficients [B, 4, 4, 1], what is left of them at t [B, 1, 1, 1])."""
        gain = patches.damping(BLUR(jnp.asarray(t)), 4).reshape(-1, 4, 4, 1)
        return patches.dct(x, 4), gain

    def denoise(self, x, t):
        """E[x0 | x_t]."""
        u, a = self.apart(x, t)
        u0 = self.m + a * self.s**2 / (a**2 * self.s**2 + t**2) * (u - a * self.m)
        return patches.idct(u0, 4)

    def end(self, x, t):
        """Where the path through x at t ends: each coefficient keeps its standard score."""
        u, a = self.apart(x, t)
        score = (u - a * self.m) / jnp.sqrt(a**2 * self.s**2 + t**2)
        return patches.idct(self.m + self.s * score, 4)

    def draw(self, count):
        random = np.random.default_rng(1)
        u0 = self.m + self.s * random.standard_normal((count, 4, 4, 1))
        n = random.standard_normal(u0.shape)
        return patches.idct(jnp.asarray(u0, jnp.float32), 4), jnp.asarray(n, jnp.float32)


def at(t, count):
    return jnp.full((count, 1, 1, 1), t, jnp.float32)


def integrated(process, denoise, x, steps, solver, top=TOP):
    grid = own_path.times(timesteps.consistency(steps, 1.0, top / (1 + top)))[::-1]
    step = jax.jit(lambda x, t, t_next: own_path.step(process, denoise, x, t, t_next, solver))
    for t, t_next in zip(grid[:-1], grid[1:], strict=True):
        x = step(x, at(t, len(x)), at(t_next, len(x)))
    return x


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_its_steps_lead_to_the_path_s_end(solver, order):
    toy = Gaussian()
    x0, n = toy.draw(8)
    x = toy.process.perturb(x0, n, toy.process.at(TOP))
    wanted = toy.end(x, at(TOP, 8))
    error = [
        float(jnp.max(jnp.abs(integrated(toy.process, toy.denoise, x, steps, solver) - wanted)))
        for steps in (128, 256)
    ]
    assert error[1] < (0.1, 0.005)[order - 1]
    assert abs(np.log2(error[0] / error[1]) - order) < 0.4


def test_the_exact_map_has_no_loss_and_a_denoiser_has():
    toy = Gaussian()
    x0, n = toy.draw(128)
    losses = {}
    for steps in 32, 128:
        grid = timesteps.consistency(steps, 1.0, TOP / (1 + TOP))
        index = 1 + jnp.arange(128) % steps
        of = jax.jit(
            lambda f: jnp.mean(own_path.loss(f, toy.denoise, toy.process, x0, n, index, grid)),  # noqa: B023
            static_argnums=0,
        )
        losses[steps] = float(of(toy.end)), float(of(toy.denoise))
    # A step of h errs by h^2, and the loss is its square.
    assert losses[128][0] < losses[32][0] / 64
    assert losses[128][1] > 30 * losses[128][0]


def test_the_straight_path_is_another():
    # To scale x by one ratio, as `bases.estimate` does, is to take the blur for none.
    toy = Gaussian()
    x0, n = toy.draw(8)
    x = toy.process.perturb(x0, n, toy.process.at(TOP))
    straight = processes.edm()
    got = integrated(straight, toy.denoise, x, 256, "euler")
    wanted = toy.end(x, at(TOP, 8))
    assert float(jnp.max(jnp.abs(got - wanted))) > 0.3


def test_correlated_noise_is_carried_to_the_data():
    """The end of a linear path has the data's covariance, though blur and colour share no basis."""
    process, random = blurred(block=0.7), np.random.default_rng(2)
    basis = jnp.eye(16).reshape(16, 4, 4, 1)
    matrix = lambda images: np.asarray(images, np.float64).reshape(16, 16).T
    zeros = jnp.zeros_like(basis)
    first, second = matrix(process.colour(basis, zeros)), matrix(process.colour(zeros, basis))
    noise = first @ first.T + second @ second.T
    assert np.abs(noise - np.diag(np.diag(noise))).max() > 0.2
    root = random.normal(0, 0.25, (16, 16))
    data = root @ root.T + 0.05 * np.eye(16)

    def covariance(t):
        a = jax.vmap(lambda one: process.apply(process.at(t).alpha, one))(basis)
        a = a.reshape(16, 16).T
        return a, a @ data @ a.T + t**2 * noise

    def denoise(x, t):
        a, whole = covariance(t.ravel()[0])
        gain = data @ a.T @ jnp.linalg.inv(whole)
        return (x.reshape(-1, 16) @ gain.T).reshape(x.shape)

    linear = matrix(integrated(process, denoise, basis, 100, "heun"))
    got = linear @ np.asarray(covariance(jnp.float32(TOP))[1]) @ linear.T
    assert np.abs(got - data).max() < 0.02 * np.abs(data).max()


@pytest.mark.parametrize("how", [{}, {"space": "x"}, {"huber": True}])
def test_without_blur_it_is_the_straight_path(how):
    process, random = processes.edm(), np.random.default_rng(3)
    x0, n = (jnp.asarray(random.standard_normal((5, 4, 4, 1)), jnp.float32) for _ in range(2))
    student = lambda x, t: jnp.tanh(0.7 * x + t)
    teacher = lambda x, t: jnp.cos(x) / (1 + t)
    grid, index = timesteps.consistency(4, 3.0, TOP / (1 + TOP)), jnp.array([1, 2, 3, 4, 4])
    got = own_path.loss(student, teacher, process, x0, n, index, grid, **how)
    ask = lambda f: bases.velocity(process, f)
    wanted = consistency.loss(ask(student), ask(teacher), x0, n, index, grid, **how)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    assert np.all(wanted > 1e-3)


def test_a_data_set_of_one_picture():
    process, random = blurred(block=0.15), np.random.default_rng(4)
    one = jnp.asarray(random.standard_normal((3, 8, 8, 3)), jnp.float32)
    n = jnp.asarray(random.standard_normal(one.shape), jnp.float32)
    exact = lambda x, t: one
    grid = timesteps.consistency(4, 1.0, TOP / (1 + TOP))
    index = jnp.array([1, 2, 4])
    assert np.all(own_path.loss(exact, exact, process, one, n, index, grid) < 1e-10)
    # A student that is wrong by 1/2 everywhere is told so by the first time, where x' is data.
    wrong = own_path.loss(lambda x, t: one + 0.5, exact, process, one, n, index, grid)
    np.testing.assert_allclose(wrong, [0.25 / grid[1] ** 2, 0, 0], rtol=1e-4, atol=1e-10)
    start = own_path.mean(process, TOP, one)
    made = bases.generator(exact, TOP, TOP, start)(n)
    np.testing.assert_array_equal(made, one)
    # A few steps from there end in it, whatever is new of the noise.
    for mode in multistep.MODES:
        few = own_path.sample(
            exact, process, own_path.grid(3, 1.0, 0.4), start + n, lambda k: n, mode
        )
        np.testing.assert_allclose(few, one, atol=1e-5)
    with pytest.raises(UserError, match="did you mean .ode"):
        own_path.sample(exact, process, grid, start, None, "sde")


# ---- the system ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(chain):
    """The stage from 4x4 to 8x8, of random weights: (its run, System, parameters, network)."""
    system, config = systems.load(chain[1])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), meshes.AXES)
    params = jax.device_get(sampling.load_params(system, chain[1], mesh)[0])
    net = nets.make(config.network, channels=3, num_classes=3, shape=(8, 8, 3))
    return chain[1], system, params, net


@pytest.fixture(scope="module")
def top(base):
    """Where the stage's own sampling starts: the first of 18 levels below 0.9."""
    i = np.arange(18)
    request = base[1].request
    low, high, steps = request.sigma_min, request.sigma_max, request.steps
    assert (low, high, steps, request.truncation, request.rho) == (0.008, 80.0, 18, 0.9, 7.0)
    levels = (80 ** (1 / 7) + i / 17 * (0.008 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    return float(levels[levels < 0.9][0])


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(3)
    return {
        "image": jnp.asarray(random.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)),
        "label": jnp.asarray(random.integers(0, 3, 6), jnp.int32),
        "row": jnp.arange(6, dtype=jnp.int32),
    }


def estimate(net, params, x, sigma, label):
    """Karras et al. 2022, equation 7, of data of deviation 0.7; sigma [B, 1, 1, 1]."""
    total = sigma**2 + 0.7**2
    told = jnp.broadcast_to(jnp.log(sigma) / 4, (len(x), 1, 1, 1)).ravel()
    f = jax.jit(net.apply)({"params": params}, x / jnp.sqrt(total), told, label)
    return 0.7**2 / total * x + 0.7 * sigma / jnp.sqrt(total) * f


def noise(key, rows):
    """White noise and 0.15 of block noise, a sum of 2x2 over 2."""
    first, other = (
        np.asarray(alternation.normal(k, rows, (8, 8, 3)))
        for k in (key, jax.random.fold_in(key, 2**32 - 1))
    )
    box = sum(np.roll(other, (i, j), (1, 2)) for i in (0, 1) for j in (0, 1)) / 2
    return jnp.asarray(first + 0.15 * box)


def gain(t):
    """The damping of a 2x2 patch of every picture, [B, 2, 2]; t [B]."""
    from scipy.special import ndtr

    share = ndtr((np.log(np.maximum(t, 1e-30)) + 1.2) / 1.2) / 0.93
    blur = 1.5 * np.sin(np.pi * share / 2) ** 2
    f = (np.pi * np.arange(2) / 2) ** 2
    return 0.999 * np.exp(-(f[:, None] + f) * blur[:, None, None] ** 2 / 2) + 0.001


def damp(t, x):
    """Sums and differences of 2x2 pixels, damped."""
    a = gain(np.float64(np.ravel(t)) * np.ones(len(x)))
    p, q, r, s = (np.asarray(x)[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    rows = (p + q + r + s, p - q + r - s, p + q - r - s, p - q - r + s)
    mean, across, down, both = (
        c / 4 * a[:, i, j, None, None, None]
        for c, (i, j) in zip(rows, [(0, 0), (0, 1), (1, 0), (1, 1)], strict=True)
    )
    out = np.zeros(x.shape)
    out[:, ::2, ::2], out[:, ::2, 1::2] = mean + across + down + both, mean - across + down - both
    out[:, 1::2, ::2], out[:, 1::2, 1::2] = mean + across - down - both, mean - across - down + both
    return jnp.asarray(out, jnp.float32)


@pytest.mark.parametrize("guidance", [-1.0, 3.0])
def test_the_distillation_s_loss(base, top, batch, guidance):
    run, _, params, net = base
    system = systems.make(apt_runs.of(run, "distil", distillation__guidance=guidance))
    moved = jax.tree.map(lambda a: 0.9 * a, params)
    key = jax.random.key(5)
    got = jax.jit(system.loss)(moved, batch, key, params)[0]

    _, of_n, of_eps = jax.random.split(key, 3)
    index = consistency.indices(of_n, batch["row"], 8)
    u = top / (1 + top) * np.arange(9) / 8
    wide = lambda a: jnp.asarray(a, jnp.float32).reshape(-1, 1, 1, 1)
    t, t_next = (wide(v / (1 - v)) for v in (u[index], u[index - 1]))
    x0, n, label = batch["image"] / 127.5 - 1, noise(of_eps, batch["row"]), batch["label"]
    x = damp(t, x0) + t * n
    hat = estimate(net, params, x, t, label)
    if guidance == 3.0:
        nobody = estimate(net, params, x, t, jnp.full(6, 3))
        hat = nobody + guidance * (hat - nobody)
    before = damp(t_next, hat) + t_next / t * (x - damp(t, hat))
    wanted = estimate(net, moved, before, jnp.maximum(t_next, 0.008), label)
    wanted = jnp.where(t_next > 0, wanted, before)
    wanted = jnp.mean(((estimate(net, moved, x, t, label) - wanted) / wide(u[index])) ** 2)
    np.testing.assert_allclose(got, wanted, rtol=1e-3)
    assert wanted > 1e-3


@pytest.mark.parametrize("sees", ["picture", "residual"])
def test_what_g_starts_from_and_d_sees(base, top, batch, monkeypatch, sees):
    run, _, params, net = base
    seen = []

    def moves(generate, discriminate, settings):
        def move(params, opt_state, for_d, for_g, rate):
            seen.append((generate, discriminate, for_d, for_g))
            zero = jnp.zeros(())
            return params, opt_state, {"loss_d": zero, "loss_g": zero}, (zero, zero)

        return move

    monkeypatch.setattr(alternation, "moves", moves)
    looked = []
    feed = bases.discriminator
    spy = lambda *of: lambda d, x, t, cond: looked.append((x, cond)) or feed(*of)  # noqa: ARG005
    monkeypatch.setattr(bases, "discriminator", spy)
    system = systems.make(apt_runs.of(run, relay__sees=sees))
    key = jax.random.key(3)
    system.training.step({}, {}, batch, key, 0.5)
    ((generate, discriminate, for_d, for_g),) = seen
    x0 = batch["image"] / 127.5 - 1
    mean = damp(np.float64(top), x0)
    for given, stream in (for_d, 3), (for_g, 4):
        label, start = given.cond
        np.testing.assert_array_equal(label, batch["label"])
        np.testing.assert_allclose(start, mean, atol=1e-5)
        # Its own draws under block noise of a stream of its own.
        second = noise(jax.random.fold_in(key, stream), batch["row"])
        white = alternation.normal(jax.random.fold_in(key, stream), batch["row"], (8, 8, 3))
        block = second - white
        rest = np.asarray(given.z - block)
        again = alternation.draw_d(key, batch["row"], x0, label, alternation.Settings())
        if stream == 4:
            again = alternation.draw_g(key, batch["row"], x0, label, alternation.Settings())
        np.testing.assert_allclose(rest, again.z, atol=1e-5)
    made = generate(params, for_g.z, for_g.cond)
    x = mean + top * for_g.z
    sigma = jnp.full((6, 1, 1, 1), top, jnp.float32)
    np.testing.assert_allclose(made, estimate(net, params, x, sigma, batch["label"]), atol=1e-4)
    discriminate({}, x0, for_d.t_real, for_d.cond)
    ((fed, told),) = looked
    np.testing.assert_array_equal(told, batch["label"])
    np.testing.assert_allclose(fed, x0 - mean if sees == "residual" else x0, atol=1e-5)


@pytest.mark.slow
def test_one_step_is_the_relay_s_own_of_one_level(base, top):
    run, relay, params, _ = base
    about = systems.load(run)[0].assets
    config = apt_runs.of(run)
    assets = {**about, "base": {"config": cli.read_config(run).to_dict()}}
    system = systems.make(config, assets)
    random = np.random.default_rng(0)
    small = jnp.asarray(random.uniform(-1, 1, (4, 4, 4, 3)), jnp.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    label = system.condition(system.request, np.arange(4))
    calls = []

    def watch(call, args, kwargs, context):
        if context.module.path == () and context.method_name == "__call__":
            calls.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        made = system.pixels(params, keys, (label, small), system.request)
    assert len(calls) == 1 and made.shape == (4, 8, 8, 3) and made.dtype == jnp.float32
    theirs = dataclasses.replace(relay.request, grid=repr(top), guidance=1.0)
    wanted = relay.pixels(params, keys, (label, small), theirs)
    np.testing.assert_allclose(made, wanted, atol=1e-4)
    assert wanted.std() > 0.05
    outputs = system.sample(params, keys, (label, small), system.request)
    assert outputs["image"].dtype == np.uint8 and outputs["label"].tolist() == [0, 1, 2, 0]
    # Two steps without new noise are the relay's own two of the first order: `ddim` by hand.
    two = dataclasses.replace(system.request, steps=2, mode="ode")
    middle = 0.5 * top / (1 + top)
    middle = middle / (1 - middle)
    x = relay.problem(params, keys, (label, small), theirs).x
    step = damp(middle, made) + middle / top * (x - damp(top, made))
    denoise = lambda x, t: relay.denoiser(params, x, at(t, 4), label)
    got = system.pixels(params, keys, (label, small), two)
    np.testing.assert_allclose(got, denoise(step, middle), atol=1e-4)
    fresh = dataclasses.replace(two, mode="consistency")
    assert not np.allclose(system.pixels(params, keys, (label, small), fresh), got, atol=1e-2)


def test_while_it_trains_it_starts_from_training_pictures(base, tiny_arrays):
    run, _, _, _ = base
    system = systems.make(apt_runs.of(run))
    pictures = system.start.pictures(system.request)
    labels = system.condition(system.request, np.arange(5))
    means = tiny_arrays["images"].reshape(40, 4, 2, 4, 2, 3).mean((2, 4)) / 127.5 - 1
    for i in range(5):
        # The class of the picture that it starts from.
        which = np.abs(means - pictures[i]).max((1, 2, 3)).argmin()
        assert np.abs(means[which] - pictures[i]).max() < 1e-5
        assert labels[i] == tiny_arrays["labels"][which]


@pytest.mark.slow
def test_what_cannot_be(base, trained, tmp_path):
    run, relay, _, _ = base
    with pytest.raises(UserError, match="config.relay.sees"):
        apt_runs.of(run, relay__sees="nothing")
    with pytest.raises(UserError, match="config.relay.sees: samples of a run of edm do not start"):
        apt_runs.of(trained, relay__sees="residual")
    assert "relay" not in apt_runs.of(trained) and "parent" not in apt_runs.of(trained)
    assert apt_runs.of(run).parent == str(run.parent / "first")
    assert apt_runs.of(run, relay__parent="runs/other").parent == "runs/other"
    # A run whose own levels cannot be made has no noisiest one.
    config = cli.read_config(run)
    config.sampling.truncation = 1e-6
    assert systems.make(config, relay.assets).backbone is None


@pytest.mark.slow
def test_the_commands(base, tmp_path, capsys):
    run, *_ = base
    folder, out = tmp_path / "one", tmp_path / "out.npz"
    words = [*apt_runs.words(run, adversarial__r1_weight=1.0), "--workdir", str(folder)]
    assert train.main(words) == 0
    for stage in folder, folder / "distilled":
        assert (stage / "samples.png").is_file() and (stage / "base.png").is_file()
    starts = tmp_path / "starts"
    starts.mkdir()
    random = np.random.default_rng(0)
    for i, side in enumerate((4, 12)):
        array = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(array).save(starts / f"{i}.png")
    argv = ["--workdir", str(folder), "--out", str(out)]
    assert sample.main([*argv, "--start", str(starts)]) == 0
    with np.load(out) as arrays:
        assert arrays["image"].shape == (2, 8, 8, 3) and arrays["label"].tolist() == [3, 3]
    # The parent's samples, in its flags; and what is not there.
    assert sample.main([*argv, "--num", "4", "--parent", "steps=3", "--cond", "green"]) == 0
    with np.load(out) as arrays:
        assert arrays["label"].tolist() == [1] * 4
    out.unlink()
    capsys.readouterr()
    assert sample.main([*argv, "--start", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err and not out.exists()
    # A first stage in one step is a parent, too.
    words = apt_runs.words(run.parent / "first", stage="distil", distil__steps=2)
    assert train.main([*words, "--workdir", str(tmp_path / "first_one")]) == 0
    config = folder / "config.json"
    first, other = str(run.parent / "first"), str(tmp_path / "first_one")
    config.write_text(config.read_text().replace(first, other))
    assert sample.main([*argv, "--num", "2", "--parent", "steps=1"]) == 0
    with np.load(out) as arrays:
        assert arrays["image"].shape == (2, 8, 8, 3)
    out.unlink()
    config.write_text(config.read_text().replace(other, "runs/lost"))
    assert sample.main([*argv, "--num", "2"]) == 2
    assert "train it, or give --start" in capsys.readouterr().err and not out.exists()
