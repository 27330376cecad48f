"""Single next frames with what came before them: recorded play as a source of examples."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.data.base import fingerprint
from diffjax.errors import UserError
from diffjax.systems.diamond import held_out, segments
from diffjax.systems.diamond.replay import SEATS, Folder, Replay

ON_DEVICE = 2 << 30  # bytes of frames; more are read from the host, a batch at a time


class Moments:
    """Every frame but an episode's first, each with the n frames and actions before it.

    `source[i]` is {"obs": uint8 [n + 1, H, W, 3], the last the frame itself, "act": int32 [n],
    "mask": bool [n + 1], False where the episode had not begun: zeros}. All are equally likely,
    whereas the base's own batches prefer newer episodes. An episode's `final` is not looked at, as
    in the base's training.

    Args:
      episodes: `segments.Episode`s with `lengths`.
      past: n.
      name: what to call it in errors.

    Raises:
      UserError: no episode of two frames.
    """

    labels, class_names, num_classes = None, (), 0

    def __init__(self, episodes: Sequence[segments.Episode], past: int, name: str):
        self.name, self.past, self.episodes = name, past, episodes
        lengths = np.asarray(episodes.lengths)
        self.rows = np.array([(e, t) for e, n in enumerate(lengths) for t in range(1, n)], np.int64)
        if not len(self.rows):
            raise UserError(f"{name}: no episode of two frames or more")

    @property
    def fingerprint(self) -> str:
        """Of which frames there are, which a replay that grows changes."""
        return fingerprint(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        episode, t = map(int, self.rows[i])
        found = segments.segment(self.episodes[episode], t - self.past, t + 1)
        return {"obs": found["obs"], "act": found["act"][:-1], "mask": found["mask"]}


class Held(Moments):
    """`Moments` whose frames lie on the device once each (`loader.InMemory`)."""

    def arrays(self) -> dict[str, np.ndarray]:
        """{"obs": uint8 [N, H, W, 3], "act": int32 [N], every episode after the other; "moment":
        int32 [len(self), 2], a frame's place among them and how many came before it, up to n}."""
        first = np.cumsum(self.episodes.lengths) - self.episodes.lengths
        episode, t = self.rows.T
        join = lambda name: np.concatenate([getattr(e, name) for e in self._each()])
        moment = np.stack([first[episode] + t, np.minimum(t, self.past)], 1)
        return {"obs": join("obs"), "act": join("act"), "moment": moment.astype(np.int32)}

    def _each(self):
        return (self.episodes[i] for i in range(len(self.episodes)))

    def gather(self, arrays: dict, index: jax.Array, keys: jax.Array) -> dict:
        """The examples of these numbers; the keys are not needed."""
        place, before = arrays["moment"][index].T
        at = place[:, None] + jnp.arange(-self.past, 1)
        mask = jnp.arange(-self.past, 1) >= -before[:, None]
        at = jnp.where(mask, at, 0)
        obs = jnp.where(mask[..., None, None, None], arrays["obs"][at], 0)
        act = jnp.where(mask, arrays["act"][at], 0)[:, :-1]
        return {"obs": obs, "act": act, "mask": mask}


def source(config, parts, workdir: Path) -> Moments:
    """Opens what a run was trained on: config.data.path's episodes but those that are held out,
    else the replay in its run directory.

    Args:
      config, parts: of the run.

    Raises:
      UserError: neither is there, or it is of another game.
    """
    path = config.data.path
    if path:
        folder = Folder(path)
        shapes, actions = {folder[0].obs.shape[1:]}, folder.actions
        episodes = held_out.split(folder, config.data.held_out, path)[0]
    else:
        path = workdir / "replay"
        if not (path / SEATS).is_file():
            raise UserError(
                f"{workdir}: no recorded play in it (replay/{SEATS}): "
                "give --config.data.path=FOLDER of episodes"
            )
        episodes = Replay(path, config.collection.seats, writable=False)
        shapes, actions = episodes.shapes, episodes.actions
    if shapes - {parts.frame} or actions > parts.actions:
        raise UserError(f"{path}: it is of another game, or of other frames")
    size = int(np.sum(episodes.lengths)) * int(np.prod(parts.frame))
    return (Held if size <= ON_DEVICE else Moments)(episodes, parts.past, str(path))
