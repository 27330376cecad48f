"""Stage C: the distilled network as generator, the diffusion model as discriminator."""

import dataclasses
import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import optax

from diffjax.errors import UserError, choose
from diffjax.nets import discriminator
from diffjax.run import cli, sampling
from diffjax.run.system import System, Training
from diffjax.systems.apt import alternation, bases, losses, origins, own_path
from diffjax.systems.apt.optimizer import rmsprop

FIELDS = {
    "distilled": str,
    "adversarial.family": str,
    "adversarial.r1_mode": str,
    "adversarial.r1_sigma": float,
    "adversarial.r1_weight": float,
    "adversarial.r2": bool,
    "adversarial.shift": float,
    "adversarial.times": str,
    "adversarial.g_from": str,
    "adversarial.d_from": str,
    "adversarial.taps": tuple,
    "adversarial.depth": float,
    "adversarial.heads": int,
    "adversarial.alarm": float,
}
BLIND = {"non_saturating": 2 * 0.6931472, "relativistic": 0.6931472}
SEES = ("picture", "residual")  # of a base whose samples start from pictures: config.relay.sees
LINES = 3  # of the log, one after the other, before the alarm


def check(config) -> None:
    """Raises `UserError` for fields of `config.adversarial` that make no sense."""
    cli.require(config, FIELDS)
    settings, where = config.adversarial, "config.adversarial"
    choose(settings.family, losses.FAMILIES, f"{where}.family")
    choose(settings.r1_mode, losses.MODES, f"{where}.r1_mode")
    choose(settings.times, dict.fromkeys(("random", "zero")), f"{where}.times")
    choose(settings.g_from, dict.fromkeys(("distilled", "diffusion")), f"{where}.g_from")
    sources = ("diffusion", "distilled", "random")
    choose(settings.d_from, dict.fromkeys(sources), f"{where}.d_from")
    ranges = {"r1_sigma": (0, 10), "r1_weight": (0, 1e6), "shift": (0.01, 1000)}
    ranges |= {"depth": (1e-3, 1), "heads": (0, 1024), "alarm": (0, 100)}
    for name, (low, high) in ranges.items():
        if not low <= settings[name] <= high:
            raise UserError(f"{where}.{name} {settings[name]}: must be from {low:g} to {high:g}")
    if any(type(tap) is not int or tap == 0 for tap in settings.taps):
        raise UserError(
            f"{where}.taps {tuple(settings.taps)}: blocks counted from 1, or from the last with -1"
        )
    if "relay" in config:
        cli.require(config, {"relay.sees": str})
        choose(config.relay.sees, dict.fromkeys(SEES), "config.relay.sees")
    for name in ("b1", "clip", "weight_decay"):
        if config.optimizer[name]:
            raise UserError(
                f"config.optimizer.{name} {config.optimizer[name]}: this stage takes RMSProp, "
                "with b2 and eps alone: 0"
            )


def settings_of(config, std: float) -> alternation.Settings:
    """What `alternation` is told; std: of the data, which the perturbation is counted in."""
    given = config.adversarial
    return alternation.Settings(
        family=given.family,
        weight=given.r1_weight,
        sigma=given.r1_sigma * std,
        mode=given.r1_mode,
        r2=given.r2,
        decay=config.optimizer.b2,
        eps=config.optimizer.eps,
        parts=config.accumulate,
    )


def taps_of(config, blocks: int) -> tuple[int, ...]:
    """The blocks that heads look behind: those that the config names, else 16, 26 and 36 of 36.

    Raises:
      UserError: a block that there is not.
    """
    given = config.adversarial.taps
    if not given:
        return discriminator.taps(max(1, round(config.adversarial.depth * blocks)))
    taps = tuple(sorted({tap if tap > 0 else blocks + 1 + tap for tap in given}))
    if not 0 < taps[0] <= taps[-1] <= blocks:
        raise UserError(
            f"config.adversarial.taps {tuple(given)}: {config.base} has {blocks} blocks, "
            "counted from 1"
        )
    return taps


def add(system: System, base: System, config, one) -> System:
    """Returns the system with what stage C trains by.

    Args:
      system: all of it that is sampled.
      base: the diffusion model.
      one: () -> a condition of one sample.
    """
    check(config)
    training, begin = _training(base, config, one)
    blind = BLIND[config.adversarial.family]
    return dataclasses.replace(
        system,
        loss=None,
        training=training,
        begin=begin,
        alarm=lambda records: collapsed(records, config.adversarial.alarm),
        panels=(
            ("losses; dotted: D's where it is blind", ("d_adversarial", "loss_g"), blind),
            ("logits of D", ("logit_real", "logit_fake"), None),
            ("gradient penalties, with their weight", ("r1", "r2"), None),
        ),
        sharding=(*discriminator.SHARDING, *base.sharding),
    )


def _training(base: System, config, one):
    """(`Training`, `System.begin`) of a config."""
    given, backbone, process = config.adversarial, base.backbone, base.process
    settings = settings_of(config, backbone.std)
    read = discriminator.ReadOut(given.heads, bias=not losses.family(given.family).paired)
    t, scale = backbone.start
    from_pictures = base.start is not None
    residual = from_pictures and config.relay.sees == "residual"

    @functools.cache  # sampling needs none of it
    def tapped():
        return backbone.tapped(taps_of(config, backbone.blocks()))

    select = lambda params: tapped()[1](params)

    def apart(given):
        """(what the network is told, the mean of the state that G starts from, None where 0)."""
        return given if from_pictures else (given, None)

    def generate(g, z, given):
        cond, mean = apart(given)
        made = bases.generator(lambda x, t: base.denoiser(g, x, t, cond), t, scale, mean)(z)
        mask = backbone.mask(cond)
        return made if mask is None else jnp.where(mask, made, 0)

    def discriminate(d, x, t, given):
        cond, mean = apart(given)
        x = x - mean if residual else x
        look = lambda params, seen: read.apply({"params": params}, *seen)
        return bases.discriminator(tapped()[0], look, backbone.feed)(d, x, t, cond)

    def heads(key):
        cond = one()
        x = jnp.zeros((1, *backbone.shape(cond)))
        own = jax.eval_shape(lambda k: select(base.init(k)), key)
        (seen, _) = jax.eval_shape(tapped()[0], own, *backbone.feed(x, jnp.zeros(1)), cond)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), seen)
        return read.init(key, zeros)["params"]

    def init(key):
        keys = jax.random.split(key, 3)
        d = {"backbone": select(base.init(keys[1])), "readout": heads(keys[2])}
        return {"g": base.init(keys[0]), "d": d}

    def optimizer(params):
        tx = rmsprop(settings.decay, settings.eps)
        return {name: tx.init(tree) for name, tree in params.items()}

    def step(params, opt_state, batch, key, rate):
        rows = batch["row"]
        x, cond = backbone.examples(batch, jax.random.fold_in(key, 2))
        if from_pictures:
            cond = cond, own_path.mean(process, t, x)
        for_d = alternation.draw_d(key, rows, x, cond, settings, given.shift)
        for_g = alternation.draw_g(key, rows, x, cond, settings, given.shift)
        if from_pictures:
            colour = lambda z, i: own_path.coloured(process, z, jax.random.fold_in(key, i), rows)
            for_d, for_g = (
                for_d._replace(z=colour(for_d.z, 3)),
                for_g._replace(z=colour(for_g.z, 4)),
            )
        if given.times == "zero":
            nought = jnp.zeros_like(for_g.t)
            for_d, for_g = for_d._replace(t_real=nought, t_fake=nought), for_g._replace(t=nought)
        move = alternation.moves(generate, discriminate, settings)
        params, opt_state, metrics, (of_d, of_g) = move(params, opt_state, for_d, for_g, rate)
        metrics["loss"] = metrics["loss_d"] + metrics["loss_g"]
        metrics |= {"grad_norm_d": optax.global_norm(of_d), "grad_norm_g": optax.global_norm(of_g)}
        metrics["grad_norm"] = jnp.hypot(metrics["grad_norm_d"], metrics["grad_norm_g"])
        return params, opt_state, metrics

    def begin(mesh):
        diffusion, which = sampling.load_params(base, origins.place(config.base), mesh)
        known, told = {"diffusion": diffusion}, [f"{config.base} ({which})"]
        if "distilled" in (given.g_from, given.d_from):
            where = origins.place(config.distilled, field="config.distilled")
            known["distilled"], which = sampling.load_params(base, where, mesh)
            told.append(f"{where} ({which})")
        key = jax.random.fold_in(jax.random.key(config.seed), HEADS)
        if given.d_from == "random":
            known["random"] = base.init(jax.random.fold_in(key, 1))
        d = {"backbone": select(known[given.d_from]), "readout": heads(key)}
        # Copies: G and D may begin as the same buffers, and each is donated.
        made = jax.tree.map(jnp.copy, {"g": known[given.g_from], "d": d})
        return made, " and ".join(told)

    return Training(init=init, optimizer=optimizer, step=step, sampled="g"), begin


HEADS = 2**32 - 3  # the stream of the heads' first weights, above every step


def collapsed(records: list[dict], below: float) -> tuple[int, str] | None:
    """Whether D has won: (the step before which it had not, a sentence), or None.

    D's adversarial loss is under `below` in three lines of the log, and the gap between the logits
    of real and made samples has grown from each to the next. Then G's gradient is of D's
    confidence and of nothing else.
    """
    last = [r for r in records if "d_adversarial" in r][-LINES:]
    if len(last) < LINES:
        return None
    gaps = [r["logit_real"] - r["logit_fake"] for r in last]
    if any(r["d_adversarial"] >= below for r in last) or any(b <= a for a, b in pairwise(gaps)):
        return None
    earlier = [r["step"] for r in records if r["step"] < last[0]["step"]]
    return max(earlier, default=0), (
        f"D tells real from made samples without fail (its loss {last[-1]['d_adversarial']:.2g}, "
        f"logits {gaps[-1]:.3g} apart and parting), and G learns no more: in another --workdir, "
        "raise config.adversarial.r1_sigma or r1_weight, lower config.optimizer.learning_rate, "
        "or raise config.batch_size"
    )
