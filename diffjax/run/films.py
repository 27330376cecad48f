"""Motion for a person to look at: stick figures as a GIF, or as an MP4 where ffmpeg is there."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffjax.data.motion import rotations as rot
from diffjax.data.motion.skeletons import Skeleton
from diffjax.errors import UserError
from diffjax.run import video

LEFT, RIGHT, MIDDLE, STANDING = (54, 112, 190), (222, 124, 36), (60, 60, 68), (46, 160, 90)
FLOOR, LINE, PATH, TEXT, GIVEN = (
    (240, 241, 244),
    (214, 216, 222),
    (150, 170, 200),
    (30, 30, 30),
    0.55,
)
YAW, PITCH = np.radians(-38.0), np.radians(14.0)  # where the camera stands
SMOOTH = 2  # drawn this many times as large, then reduced
MAX_FRAMES = 20_000


def save_film(
    motions: Sequence[np.ndarray],
    skeleton: Skeleton,
    path: Path,
    *,
    captions: Sequence[str] = (),
    fps: float | None = None,
    size: int = 240,
    columns: int | None = None,
    given: Sequence[np.ndarray] = (),
) -> None:
    """Draws motions side by side; the camera follows each, left is blue and right is orange.

    A green dot under a foot says that it stands (see `Skeleton.contact`); the line on the floor is
    the way of the root. A motion that ends before the longest holds its last frame.

    Args:
      motions: joints [N_i, J, 3] in the skeleton's unit, y up.
      skeleton: of all of them.
      path: ends in .gif or .mp4. Written under a temporary name, then renamed.
      captions: one a motion, or none.
      fps: frames a second; the skeleton's by default. A GIF's frames last whole hundredths of a
        second.
      size: pixels a side of one motion's picture.
      columns: motions in a row; by default up to 4.
      given: bool [N_i] a motion: frames that were given and not generated, drawn pale.

    Raises:
      UserError: another ending, no ffmpeg for an MP4, motions of another shape, or too long.
    """
    path = Path(path)
    motions = [_checked(m, skeleton) for m in motions]
    if not motions:
        raise UserError(f"{path}: no motions to draw")
    frames = film(motions, skeleton, captions, size, columns, given)
    video.save(frames, path, fps or skeleton.fps, _palette(), what="film", disposal=1)


def _checked(motion: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    motion = np.asarray(motion, np.float64)
    if motion.ndim != 3 or motion.shape[1:] != (len(skeleton), 3) or not len(motion):
        raise UserError(f"a motion is [frames, {len(skeleton)}, 3], not {motion.shape}")
    if len(motion) > MAX_FRAMES:
        raise UserError(f"a motion of {len(motion)} frames, films have up to {MAX_FRAMES}")
    if not np.isfinite(motion).all():
        raise UserError("a motion has numbers that are not finite")
    return motion * skeleton.unit


def film(
    motions: Sequence[np.ndarray],
    skeleton: Skeleton,
    captions: Sequence[str] = (),
    size: int = 240,
    columns: int | None = None,
    given: Sequence[np.ndarray] = (),
) -> Iterator[Image.Image]:
    """Yields the frames of `save_film`, RGB images of equal size; motions are in metres."""
    columns = min(len(motions), columns or min(4, len(motions)))
    rows = -(-len(motions) // columns)
    scenes = [_Scene(m, skeleton) for m in motions]
    reach = max(scene.reach for scene in scenes)
    font = ImageFont.load_default(max(11, size // 18))
    lines = [_wrap(c, font, size - 12) for c in captions]
    head = max(map(len, lines), default=0) * (font.size + 4) + (6 if lines else 0)
    width, height = columns * size, rows * (size + head)
    for t in range(max(map(len, motions))):
        sheet = Image.new("RGB", (width, height), "white")
        write = ImageDraw.Draw(sheet)
        for i, scene in enumerate(scenes):
            x, y = i % columns * size, i // columns * (size + head)
            frame = min(t, len(motions[i]) - 1)
            pale = i < len(given) and frame < len(given[i]) and bool(given[i][frame])
            sheet.paste(scene.draw(frame, size, reach, pale), (x, y + head))
            for k, line in enumerate(lines[i] if i < len(lines) else ()):
                write.text((x + 6, y + 4 + k * (font.size + 4)), line, TEXT, font)
        yield sheet


def _wrap(text: str, font, width: int) -> list[str]:
    text = " ".join(str(text).split())
    letters = max(8, int(width / max(1.0, font.getlength("n"))))
    return textwrap.wrap(text, letters, max_lines=3, placeholder=" ...")


class _Scene:
    """One motion, its floor and its camera."""

    def __init__(self, motion: np.ndarray, skeleton: Skeleton):
        self.motion = motion - np.array([0.0, motion[..., 1].min(), 0.0])
        self.parents = skeleton.parents
        root = self.motion[:, 0] * [1.0, 0.0, 1.0]
        window = np.ones(9) / 9
        padded = np.pad(root, ((4, 4), (0, 0)), "edge")
        self.follow = np.stack([np.convolve(c, window, "valid") for c in padded.T], -1)
        self.path = root
        about = self.motion - self.follow[:, None]
        self.middle = 0.5 * max(0.5, np.percentile(about[..., 1].max(1), 95))
        away = np.abs(about - [0.0, self.middle, 0.0]).max(0)
        self.reach = 1.08 * max(away[:, 1].max(), np.hypot(away[:, 0], away[:, 2]).max())
        sides = dict.fromkeys((a for a, _ in skeleton.pairs), LEFT)
        sides |= dict.fromkeys((b for _, b in skeleton.pairs), RIGHT)
        self.colours = [sides.get(j, MIDDLE) for j in range(len(skeleton))]
        feet = motion[:, list(skeleton.feet)] / skeleton.unit
        still = (np.diff(feet, axis=0) ** 2).sum(-1) < skeleton.contact
        self.standing = np.concatenate([still, still[-1:]]) if len(still) else np.ones((1, 4), bool)
        self.feet = skeleton.feet

    def draw(self, t: int, size: int, reach: float, pale: bool) -> Image.Image:
        big = size * SMOOTH
        centre = self.follow[t] + [0.0, self.middle, 0.0]
        turn = rot.multiply(rot.about("x", np.array(PITCH)), rot.about("y", np.array(YAW)))

        def project(points: np.ndarray) -> list[tuple[float, float]]:
            seen = rot.rotate(turn, points - centre)
            scale = 0.5 * big / reach / (1 - np.minimum(seen[..., 2], 5 * reach) / (7 * reach))
            x, y = big / 2 + seen[..., 0] * scale, big / 2 - seen[..., 1] * scale
            return list(zip(x.tolist(), y.tolist(), strict=True))

        image = Image.new("RGB", (big, big), "white")
        pen = ImageDraw.Draw(image)
        self._floor(pen, project, t, reach)
        if len(self.path) > 1:
            pen.line(project(self.path), PATH, SMOOTH)
        points = project(self.motion[t])
        for k, joint in enumerate(self.feet):
            if self.standing[t, k]:
                ((x, y),) = project(self.motion[t, [joint]] * [1.0, 0.0, 1.0])
                r = size / 60 * SMOOTH
                pen.ellipse((x - 1.6 * r, y - 0.7 * r, x + 1.6 * r, y + 0.7 * r), STANDING)
        thick = max(2, round(size / 55 * SMOOTH))
        depth = rot.rotate(turn, self.motion[t] - centre)[:, 2]
        for joint in np.argsort(depth):
            if self.parents[joint] >= 0:
                colour = self.colours[joint]
                if pale:
                    colour = tuple(_paler(colour).astype(int).tolist())
                a, b = points[self.parents[joint]], points[joint]
                pen.line([a, b], colour, thick)
                for x, y in (a, b):  # round ends
                    pen.ellipse(
                        (x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), colour
                    )
        return image.reduce(SMOOTH)

    def _floor(self, pen, project, t: int, reach: float) -> None:
        """Half-metre lines that stay where they are in the world, so that walking is seen.

        Wider apart where a body is far too large, as one that a diverged network made may be.
        """
        cell = 0.5 * 2 ** np.ceil(np.log2(max(1.0, reach / 8)))
        half = np.ceil(1.3 * reach / cell) * cell
        x0, z0 = np.floor(self.follow[t, [0, 2]] / cell) * cell
        low = np.array([[x0 - half, z0 - half], [x0 + half + cell, z0 + half + cell]])
        corners = [(low[i, 0], 0.0, low[j, 1]) for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]
        pen.polygon(project(np.array(corners)), FLOOR)
        for k in np.arange(0, 2 * half + 2 * cell, cell):
            for ends in (
                ((low[0, 0] + k, 0, low[0, 1]), (low[0, 0] + k, 0, low[1, 1])),
                ((low[0, 0], 0, low[0, 1] + k), (low[1, 0], 0, low[0, 1] + k)),
            ):
                pen.line(project(np.array(ends, float)), LINE, SMOOTH)


def _palette() -> Image.Image:
    """An image with all colours of a film and what is between them and their ground: those of one
    frame would not do for another, in which a foot stands or that is paler."""
    white, pens = np.array([255.0] * 3), np.array([LEFT, RIGHT, MIDDLE, STANDING, PATH, TEXT])
    colours = [white, np.array(FLOOR), np.array(LINE), (white + LINE) / 2]
    for pen in (*pens, *_paler(pens[:3])):
        colours += [pen + share * (white - pen) for share in (0.0, 0.25, 0.5, 0.75)]
    image = Image.new("P", (1, 1))
    image.putpalette(np.round(colours).astype(np.uint8).tobytes())
    return image


def _paler(colour):
    return GIVEN * 255 + (1 - GIVEN) * np.asarray(colour)
