"""How a network of motions is trained further: its `Backbone`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffjax import nets
from diffjax.nets import tapping
from diffjax.run.system import Backbone
from diffjax.systems.mdm import training

CONDITION = ("label", "text", "text_mask")  # of a batch, what the network is told


def make(
    config,
    net,
    conditioner,
    process_steps: int,
    features: int,
    inputs: tuple,
    droppable: bool,
    finish: Callable,
) -> Backbone:
    """Returns the backbone of a run without a context.

    Tokens are those of the frames, without the condition's before them; frames that pad a motion
    count nowhere: they are 0 in what is judged, as in the data, and masked in the heads.

    Args:
      config: the run's.
      net: `MotionTransformer`.
      conditioner: `conditions.Conditioner`.
      process_steps: T.
      features: numbers a frame.
      inputs: ShapeDtypeStructs of the network's x, t and condition.
      droppable: whether it was trained without its condition too.
      finish: as `Backbone.finish`.
    """
    unit = nets.unit(config.network)

    def examples(batch, key):
        rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        clips = batch["motion"], batch["length"], rows
        x0, mask, _ = training.examples(*clips, context=0, predict=0, unit=config.data.crop)
        told = {name: batch[name] for name in CONDITION if name in batch}
        return x0, {**told, "mask": mask, "drop": jnp.zeros(len(x0), bool)}

    def tapped(taps: tuple[int, ...]):
        look, select = tapping.tapped(net, unit, taps, inputs)

        def seen(params, x, t, given):
            told = conditioner.told(params, given)
            how = {"mask": given["mask"], "drop": given["drop"]}
            tokens = look(params["motion"], x, t, told, **how)
            first = tokens[0].shape[1] - x.shape[1] if not net.decoder else int(net.emb_trans_dec)
            first = min(first, 1)  # what is behind the frames pads them to a multiple
            frames = [a[:, first : first + x.shape[1]] for a in tokens]
            return frames, [given["mask"]] * len(frames)

        return seen, lambda params: {**params, "motion": select(params["motion"])}

    return Backbone(
        shape=lambda given: (given["mask"].shape[1], features),
        mask=lambda given: given["mask"][..., None],
        std=1.0,
        start=(float(process_steps), 1.0),
        lowest=1.0,
        blocks=lambda: len(tapping.blocks(net, unit, inputs)),
        tapped=tapped,
        # The network is told whole numbers 0 .. T - 1.
        feed=lambda x, t: (x, jnp.floor(t * (process_steps - 1) + 0.5)),
        examples=examples,
        unconditional=(lambda g: {**g, "drop": jnp.ones_like(g["drop"])}) if droppable else None,
        finish=finish,
        asks=("cond", "seconds", "frames", "text_folder"),
    )
