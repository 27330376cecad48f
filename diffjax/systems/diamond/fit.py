"""DIAMOND's outer loop, read from top to bottom: play, learn the world, learn to act in it, look.

Alonso et al. 2024, Algorithm 1, with the released code's numbers of steps. An epoch ends with a
checkpoint; a signal saves in the middle of one. What was played is on disk piece by piece
(`replay.py`), so that a kill at any moment loses and repeats nothing of it.
"""

from pathlib import Path

import jax

from diffjax.errors import UserError
from diffjax.run import loop, run_directory, sampling
from diffjax.run import mesh as meshes
from diffjax.run.checkpoints import Checkpoints, append_json, cut_jsonl
from diffjax.run.logs import Logger, environment
from diffjax.run.processes import Signals
from diffjax.run.system import System, load_assets, save_assets
from diffjax.systems.diamond import collecting, looking
from diffjax.systems.diamond import state as states
from diffjax.systems.diamond.experience import Experience
from diffjax.systems.diamond.learning import Learner
from diffjax.systems.diamond.session import Position, Session
from diffjax.systems.diamond.settings import GROUPS, Parts, updates_of
from diffjax.weights import trees


def fit(
    system: System,
    parts: Parts,
    config,
    experience: Experience,
    workdir: Path,
    *,
    init_from: str = "",
    dry_run: bool = False,
) -> int:
    """Trains for config.epochs (or config.time_budget seconds), resuming what `workdir` holds.

    Args:
      system, parts, experience: made from `config`.
      workdir: the run directory.
      init_from: a run directory or safetensors file whose weights a new run starts from.
      dry_run: only tell what it would cost.

    Returns:
      The exit status: 0 done, 130 or 143 saved and left on Ctrl-C or SIGTERM.

    Raises:
      UserError: for what a person can mend, NaN included; the last good checkpoint is named.
    """
    # ---- devices, shapes: whatever may be wrong shows before anything is written --------------
    mesh = check_mesh(config, parts)
    worlds = config.actor_critic.batch_size
    shapes = jax.eval_shape(lambda key: states.create(parts, worlds, key), jax.random.key(0))
    shardings = states.shardings_of(shapes, mesh)
    shapes = jax.tree.map(
        lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings
    )
    if dry_run:
        from diffjax.systems.diamond import costs

        return costs.report(parts, config, shapes, mesh)
    weights = source = None
    if init_from and not run_directory.holds_checkpoint(workdir):
        weights, source = loop.load_weights(system, init_from, shapes.params, shardings.params)

    # ---- the run directory ------------------------------------------------------------------
    lock = run_directory.prepare(config, workdir, system.optional)
    checkpoints = Checkpoints(workdir, keep=config.keep, keep_every=config.keep_every)
    newest = checkpoints.newest()

    # ---- state: new, or where the run was -----------------------------------------------------
    position = Position()
    if newest is not None:
        meta = checkpoints.meta(newest)
        if meta["fingerprint"] != experience.fingerprint:
            raise UserError(
                f"{workdir} was trained on {meta['fingerprint']}, not on "
                f"{experience.fingerprint}; give these data another --workdir"
            )
        state, position = checkpoints.restore(shapes, newest)[0], Position.of(meta)
        system.assets.update(load_assets(workdir))
    else:
        state = states.create(parts, worlds, jax.random.key(config.seed))
        state = jax.device_put(state, shardings)
        if weights is not None:
            state = state._replace(params=weights)
    save_assets(system.assets, workdir)
    cut_jsonl(workdir / "metrics.jsonl", newest or 0)
    record = {"event": "start" if newest is None else "resume", "step": newest or 0}
    record |= {"init_from": source} if source else {}
    append_json(workdir / "log.jsonl", {**record, **environment(config.seed)})

    planned = sum(
        updates_of(config, network)(epoch)
        for network in parts.networks
        for epoch in range(config.epochs)
    )
    rows = config.denoiser.batch_size
    log = Logger(workdir, start=newest or 0, steps=planned, batch_size=rows)
    if source:
        log.say(f"{workdir}: starting from {source}")
    elif init_from:
        log.say(f"{workdir}: going on with its own checkpoint; --init_from is not used")

    # ---- the loop ---------------------------------------------------------------------------
    with Signals() as signals:
        session = Session(
            system=system,
            parts=parts,
            config=config,
            experience=experience,
            workdir=workdir,
            mesh=mesh,
            shardings=shardings,
            checkpoints=checkpoints,
            log=log,
            signals=signals,
            state=state,
            position=position,
            step=newest or 0,
        )
        del state  # its buffers are donated: the session has the newest
        learner = Learner(session)
        if source:
            session.save()  # so that a kill before the first checkpoint does not forget these
        if not session.over():
            begin = f"epoch {position.epoch} of {config.epochs}, step {session.step}"
            log.say(f"{workdir}: {begin}; the first updates of each network compile")
            looking.record_starts(session)
        with collecting.player(session) as player:
            while not session.stopping():
                looking.look(session)  # a kill may have come between the last epoch and this
                player.collect()
                for network in parts.networks:
                    learner.learn(network)
                session.close_epoch()

        # ---- leave: saved, and at the end with scores and a picture ----------------------------
        finished, step = session.over(), session.step
        session.save()
        if finished:
            looking.look(session, last=True)
            held = sampling.fetch(session.state.params)
            trees.save(held, workdir / sampling.WEIGHTS, {"step": str(step)})
        finished = finished and not session.interrupted()
    checkpoints.close()
    log.close()
    lock.close()
    if finished:
        log.say(f"{workdir}: done, step {step}. Samples: {workdir}/samples{system.suffix}")
        return 0
    log.say(f"{workdir}: saved at step {step}; the same command resumes")
    return 128 + int(signals.got)


def check_mesh(config, parts: Parts):
    """Returns the mesh; `UserError` where batches do not divide over it, or processes are many."""
    if jax.process_count() > 1:
        raise UserError("DIAMOND trains in one process, on all of its devices: no --distributed")
    mesh = meshes.make_mesh(config.mesh)
    shards = meshes.batch_shards(mesh)
    for network in parts.networks:
        size = config[GROUPS[network]].batch_size
        if size % shards:
            raise UserError(
                f"config.{GROUPS[network]}.batch_size {size} does not divide over {shards} devices"
            )
    return mesh
