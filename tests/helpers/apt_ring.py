"""A ring of eight Gaussians, and small networks for APT's three stages on it: seconds on a CPU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax.core import ema as ema_rules
from diffjax.core import processes, samplers
from diffjax.nets.discriminator import ReadOut
from diffjax.systems.apt import alternation, bases, consistency, timesteps

MODES, RADIUS, SPREAD = 8, 1.4, 0.08
BATCH = 256


def ring(key, count: int) -> jax.Array:
    """[count, 2]: points of the ring."""
    mode, noise = jax.random.split(key)
    angle = 2 * jnp.pi * jax.random.randint(mode, (count,), 0, MODES) / MODES
    centre = RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    return centre + SPREAD * jax.random.normal(noise, (count, 2))


class Net(nn.Module):
    """(x [B, 2], t [B]) -> the velocity [B, 2]; with taps, [tokens [B, 1, width], ...]."""

    width: int = 64
    depth: int = 4
    taps: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x, t):
        f = 2.0 ** jnp.arange(5) * t[:, None]
        h = nn.Dense(self.width)(jnp.concatenate([x, jnp.cos(f), jnp.sin(f)], -1))
        seen = []
        for i in range(self.depth):
            y = nn.Dense(self.width, name=f"in_{i}")(nn.silu(nn.LayerNorm(name=f"norm_{i}")(h)))
            h = h + nn.Dense(self.width, name=f"out_{i}")(nn.silu(y))
            seen.append(h[:, None])
        if self.taps:
            return [seen[tap - 1] for tap in self.taps]
        return nn.Dense(2, kernel_init=nn.initializers.zeros, name="last")(h)


def velocity(params, x, t):
    """The network's velocity at t, a number or [B, 1]."""
    return Net().apply({"params": params}, x, jnp.broadcast_to(jnp.ravel(t), len(x)))


def denoise(params):
    return lambda x, t: x - t * velocity(params, x, t)


def trained(loss, params, steps: int, rate: float, seed: int):
    """Adam on loss(params, key) with a cosine to 0; the average of the last steps (0.99)."""
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, key):
        params, opt, average = carry
        value, gradient = jax.value_and_grad(loss)(params, key)
        updates, opt = tx.update(gradient, opt)
        params = optax.apply_updates(params, updates)
        return (params, opt, ema_rules.update(average, params, 0.01)), value

    keys = jax.random.split(jax.random.key(seed), steps)
    run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params), params), keys))
    (_, _, average), values = run(params)
    assert np.all(np.isfinite(values))
    return average


def drawn(key):
    """(x0, eps, t uniform [B, 1], a key that is left)."""
    keys = jax.random.split(key, 4)
    t = jax.random.uniform(keys[2], (BATCH, 1))
    return ring(keys[0], BATCH), jax.random.normal(keys[1], (BATCH, 2)), t, keys[3]


def pretrained(steps: int):
    """Stage A: flow matching, with t uniform."""
    params = Net().init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))["params"]

    def loss(params, key):
        x0, eps, t, _ = drawn(key)
        return jnp.mean((velocity(params, (1 - t) * x0 + t * eps, t) - (eps - x0)) ** 2)

    return trained(loss, params, steps, 2e-3, 1)


def distilled(base, steps: int):
    """Stage B: consistency distillation on 32 times, of the velocity."""
    grid = timesteps.consistency(32)

    def loss(params, key):
        x0, eps, _, rest = drawn(key)
        n = consistency.indices(rest, jnp.arange(BATCH), 32)
        student, teacher = (lambda x, t, p=p: velocity(p, x, t) for p in (params, base))
        return jnp.mean(consistency.loss(student, teacher, x0, eps, n, grid))

    return trained(loss, base, steps, 1e-3, 2)


def post_trained(start, base, settings, steps: int, rate: float = 1e-4):
    """Stage C: (the generator's average, metrics [steps]); D's backbone is the diffusion model."""
    net, read = Net(taps=(2, 3, 4)), ReadOut(bias=settings.family != "relativistic")
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))["params"]
    backbone = {name: base[name] for name in shapes}
    tokens = [jnp.zeros((1, 1, net.width))] * 3
    readout = jax.jit(read.init)(jax.random.key(4), tokens)["params"]
    generate = lambda g, z, cond: bases.generator(denoise(g), 1.0)(z)
    discriminate = bases.discriminator(
        lambda p, x, t, cond: net.apply({"params": p}, x, t),
        lambda p, features: read.apply({"params": p}, features),
    )
    step = alternation.alternation(generate, discriminate, settings)
    paired = settings.family == "relativistic"

    def one(state, key):
        of_d, of_g = jax.random.split(key)
        x, z, t, rest = drawn(of_d)
        more = jax.random.split(rest, 3)
        t_fake = t[:, 0] if paired else jax.random.uniform(more[2], (BATCH,))
        eps = [jax.random.normal(k, x.shape) for k in more[:2]]
        for_d = alternation.ForD(x, None, z, None, t[:, 0], t_fake, *eps)
        x, z, t, _ = drawn(of_g)
        for_g = alternation.ForG(z, None, t[:, 0], x if paired else None)
        return step(state, for_d, for_g, rate)

    state = alternation.create(start, {"backbone": backbone, "readout": readout}, settings)
    keys = jax.random.split(jax.random.key(3), steps)
    state, metrics = jax.jit(lambda s: jax.lax.scan(one, s, keys))(state)
    assert int(state.bad_step) == -1
    return state.ema, metrics


def samples(params, steps: int, count: int = 4096) -> np.ndarray:
    """[count, 2], by so many steps of Euler's method; 1 is the generator."""
    z = jax.random.normal(jax.random.key(99), (count, 2))
    run = lambda z: samplers.ode(
        denoise(params), processes.flow(), timesteps.trailing(steps), z, order=1
    )
    return np.asarray(jax.jit(run)(z))


def scores(x: np.ndarray) -> dict[str, float]:
    """How near samples are to the ring.

    "distance" is sliced Wasserstein-2; "sharp" the share within 4 deviations of a mode's centre;
    "modes" how many modes have at least 2 % of the samples in them.
    """
    data = np.asarray(ring(jax.random.key(77), len(x)))
    angle = np.pi * np.arange(64) / 64
    along = np.stack([np.cos(angle), np.sin(angle)])
    gaps = np.sort(x @ along, 0) - np.sort(data @ along, 0)
    turn = 2 * np.pi * np.arange(MODES) / MODES
    centres = RADIUS * np.stack([np.cos(turn), np.sin(turn)], -1)
    away = np.linalg.norm(x[:, None] - centres, axis=-1)
    near = away.min(1) < 4 * SPREAD
    shares = np.bincount(away.argmin(1)[near], minlength=MODES) / len(x)
    return {
        "distance": float(np.sqrt(np.mean(gaps**2))),
        "sharp": float(near.mean()),
        "modes": int(np.sum(shares > 0.02)),
    }
