"""After an epoch: scores in the real game, losses on held-out episodes, a picture to look at."""

from pathlib import Path

import jax
import numpy as np

from diffjax.run import run_directory, sampling
from diffjax.run.checkpoints import append_json
from diffjax.run.logs import read_metrics
from diffjax.run.system import save_assets
from diffjax.systems.diamond import batches, held_out, showing
from diffjax.systems.diamond import state as states
from diffjax.systems.diamond.games.seats import Games
from diffjax.systems.diamond.session import Session
from diffjax.systems.diamond.settings import GROUPS

BEGUN = 4  # games, to have something to begin from before any is played for its score


def record_starts(session: Session) -> None:
    """Records where pictures and play begin, if the run has nothing yet, or of another length."""
    there = session.system.assets.get("starts_obs")
    frames = session.parts.past + session.config.evaluation.horizon
    if there is None or there.shape[1] != frames:
        _keep_starts(session, _episodes(session))


def look(session: Session, last: bool = False) -> None:
    """Scores and a picture, where they are due and not there: between epochs, or at the end.

    What is there is found in metrics.jsonl and samples/, so that a kill in between is no matter.
    """
    place, config = session.position, session.config
    if not last and (place.phase or place.done or not place.epoch):
        return
    if last or place.epoch % config.evaluation.every == 0:
        _evaluate(session, last)
    picture = session.workdir / "samples" / f"step_{session.step:08d}{session.system.suffix}"
    due = last or place.epoch % config.sample_every == 0
    if due and not picture.exists() and not session.interrupted():
        _draw(session, picture)
    session.log.restart(session.step)


def _evaluate(session: Session, last: bool) -> None:
    file, key = session.workdir / "metrics.jsonl", "final" if last else "evaluated"
    known = read_metrics(session.workdir) if file.is_file() else []
    if any(record.get(key) == session.step for record in known):
        return
    settings = session.config.evaluation
    games = settings.final_games if last else settings.games
    record = {"step": session.step, "epoch": session.position.epoch, key: session.step}
    if games and session.acting and session.experience.make is not None:
        played, episodes = _play(session, games)
        if session.interrupted():
            return
        scores = [game.score for game in played]
        record |= {"score_mean": float(np.mean(scores)), "score_std": float(np.std(scores))}
        record |= {"games": len(scores), "game_steps": float(np.mean([g.length for g in played]))}
        record["games_cut"] = sum(game.length == settings.limit for game in played)
        _keep_starts(session, episodes)
    else:
        episodes = _episodes(session)
    for network in session.parts.networks:
        if network != "actor_critic":
            record |= _test_losses(session, network, episodes)
    if session.interrupted():
        return
    append_json(file, record)
    words = {"score_mean": "score", "test_denoiser_loss": "denoiser's loss"}
    told = [f"{word} {record[name]:.4g}" for name, word in words.items() if name in record]
    session.log.say(f"{session.workdir}: step {session.step}, held out: {', '.join(told)}")


def _play(session: Session, games: int):
    """(scores of games that the policy played, to their ends or the limit, their first steps)."""
    settings, seed = session.config.evaluation, session.config.seed + held_out.SEED
    seats = min(settings.seats, games)
    how = {"limit": settings.limit, "processes": session.config.collection.processes}
    with Games(session.experience.make, seats, seed, **how) as seated:
        return held_out.play(
            *(seated, session.policy(), session.no_memory(seats), games),
            seed=seed,
            keep=settings.longest,
            stop=session.interrupted,
        )


def _episodes(session: Session):
    """Held-out episodes without a policy: recorded ones, or games that are played at random."""
    settings, seed = session.config.evaluation, session.config.seed + held_out.SEED
    if session.experience.test is not None:
        return [session.experience.test[i] for i in range(len(session.experience.test))]
    policy = held_out.uniform(session.parts.actions)
    with Games(session.experience.make, min(settings.seats, BEGUN), seed) as seated:
        how = {"seed": seed, "keep": settings.longest, "most": settings.longest}
        return held_out.play(seated, policy, None, BEGUN, **how, stop=session.interrupted)[1]


def _keep_starts(session: Session, episodes) -> None:
    settings, past = session.config.evaluation, session.parts.past
    if session.interrupted():
        return
    some = held_out.starts_of(episodes, past, settings.horizon, settings.starts)
    save_assets(some, session.workdir)
    session.system.assets.update(some)


def _test_losses(session: Session, network: str, episodes) -> dict[str, float]:
    config, group = session.config, GROUPS[network]
    if network not in session.losses:
        session.losses[network] = jax.jit(states.loss_of(session.parts, network, config))
    loss = session.losses[network]
    params, names = session.state.params[network], batches.FIELDS[network]
    how = config[group].batch_size, batches.spans(config)[network], names, config.seed
    record = {}
    for name, value in held_out.losses(loss, params, episodes, *how).items():
        if name.startswith("confusion"):
            short = f"test_{group}_{name.removeprefix('confusion_')}"
            record |= held_out.of_confusion(short, value)
        else:
            record[f"test_{group}_{name}"] = float(value)
    return record


def _draw(session: Session, picture: Path) -> None:
    """Writes samples.gif, real above imagined, and the curves of the losses."""
    system, num = session.system, session.config.num_samples
    if session.sampler is None:
        session.sampler = sampling.sampler(system, system.request, session.mesh)
    how = {"num": num, "seed": session.config.seed, "batch": num, "mesh": session.mesh}
    outputs = sampling.collect(
        system, session.state.params, system.request, **how, run=session.sampler
    )
    newest = session.workdir / f"samples{system.suffix}"
    system.show(outputs, newest)
    showing.loss_plot(session.workdir / "metrics.jsonl", session.workdir / "loss.png")
    run_directory.copy(newest, picture)  # last: it says that all are made
