"""The first phase of an epoch: playing the real game, in all seats at once, into the replay."""

import contextlib
from collections.abc import Iterator

from diffjax.systems.diamond.collect import collect
from diffjax.systems.diamond.games.seats import Games
from diffjax.systems.diamond.replay import Replay, fill, first_target
from diffjax.systems.diamond.session import Session

PIECE = 100  # steps a seat that are confirmed at once


class Player:
    """The seats of a run: opened when something is to be played, then kept.

    Where the replay ends is where they go on, after a kill too: the games are brought there by
    their recorded actions.
    """

    def __init__(self, session: Session):
        self._session, self._games, self._memory = session, None, None

    def collect(self) -> None:
        """Plays this epoch's steps; what a run before a kill played of them counts."""
        session = self._session
        if session.position.phase or session.replay is None:
            return session.next_phase(0)
        replay = session.replay
        while not session.stopping():
            target = target_of(session.config, replay, session.position.epoch)
            if replay.steps >= target:
                return session.next_phase(0)
            if self._games is None:
                self._sit_down()
            piece = min(target, replay.steps + PIECE)
            self._memory = fill(replay, self._play, self._memory, piece, piece=PIECE)
            session.log.restart(session.step)
        return None

    def _sit_down(self) -> None:
        session, c = self._session, self._session.config.collection
        make, seed = session.experience.make, session.config.seed
        how = {"life_ends": True, "limit": c.limit, "processes": c.processes}
        self._games = Games(make, c.seats, seed, **how)
        there = session.replay.resume(session.no_memory(c.seats))
        self._games.restore(there.game, there.actions)
        self._memory = there.memory

    def _play(self, steps: int, memory):
        session, c = self._session, self._session.config.collection
        how = {"epsilon": c.epsilon, "temperature": c.temperature, "seed": session.config.seed}
        return collect(self._games, session.policy(), memory, steps, **how)

    def close(self) -> None:
        """Closes the games, if any were opened."""
        if self._games is not None:
            self._games.close()


@contextlib.contextmanager
def player(session: Session) -> Iterator[Player]:
    """A `Player` that is closed at the end."""
    made = Player(session)
    try:
        yield made
    finally:
        made.close()


def target_of(config, replay: Replay, epoch: int) -> int:
    """Returns how many steps a seat are wanted by the end of an epoch's play.

    While the first collection is not over, how many its next part goes to: ask again then.
    """
    c = config.collection
    each = lambda steps: -(-steps // c.seats)
    least, most = each(c.first_least), each(c.first_most)
    first = first_target(replay, least, most, enough=c.first_rewards)
    return min(each(c.steps), first + epoch * each(c.epoch_steps))
