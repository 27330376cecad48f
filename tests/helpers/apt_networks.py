"""Small networks with weights that are no zeros, for what APT does to any."""

import jax
import jax.numpy as jnp
import numpy as np
from apt_golden import params_by_rule

from diffjax.core import denoisers, processes
from diffjax.nets.discriminator import ReadOut
from diffjax.nets.dit import DiT
from diffjax.systems.apt import bases


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def transformer_critic(width=24, depth=3, bias=True):
    """(discriminate, its weights): a DiT with two taps and a read-out; no weight is 0."""
    net = DiT(num_classes=3, width=width, depth=depth, heads=2, taps=(1, depth), time_scale=1000.0)
    read = ReadOut(bias=bias)
    inputs = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    backbone = jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"]
    tokens = [jax.ShapeDtypeStruct((1, 16, width), jnp.float32)] * 2
    readout = jax.eval_shape(read.init, jax.random.key(0), tokens)["params"]
    params = params_by_rule({"backbone": backbone, "readout": readout})[0]

    def d(params, x, t, label, dtype=jnp.float32):
        features = lambda p, x, t, label: net.clone(dtype=dtype).apply({"params": p}, x, t, label)
        logits = lambda p, features: read.apply({"params": p}, features)
        return bases.discriminator(features, logits)(params, x, t, label)

    return d, params


def transformer():
    """(generate, discriminate, G's weights, D's, shape of a sample): of two narrow blocks."""
    net = DiT(channels=4, num_classes=3, width=24, depth=2, heads=2, time_scale=1000.0)
    inputs = jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    g = params_by_rule(jax.eval_shape(net.init, jax.random.key(0), *inputs)["params"])[0]

    def generate(g, z, label):
        told = lambda x, t: net.apply({"params": g}, x, jnp.broadcast_to(t, len(x)), label)
        return bases.generator(denoisers.from_flow(processes.flow(), told), 1.0)(z)

    return generate, *transformer_critic(depth=2), g, (8, 8, 4)


def perceptron():
    """The same of one hidden layer each; D's last layer is "last"."""
    g = {"in": normal(0, 6, 16) / 3, "out": normal(1, 16, 6) / 4}
    d = {"in": normal(2, 6, 16) / 3, "t": normal(3, 16), "last": normal(4, 16) / 4}
    generate = lambda g, z, label: z - jnp.tanh(z @ g["in"] + label[:, None]) @ g["out"]
    hidden = lambda d, x, t, label: x @ d["in"] + t[:, None] * d["t"] + label[:, None]
    discriminate = lambda d, x, t, label: jnp.tanh(hidden(d, x, t, label)) @ d["last"]
    return generate, discriminate, d, g, (6,)
