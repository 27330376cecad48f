"""BVH files: any skeleton, any order of channels, in and out.

A file lists joints depth first, each with an OFFSET from its parent and CHANNELS, then one row of
numbers a frame. Rotations are degrees, intrinsic, in the order listed; position channels are the
joint's whole translation and take the place of its OFFSET. Units are the file's own.
"""

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffjax.data.motion import rotations as rot
from diffjax.data.reading import read_file
from diffjax.errors import UserError

MAX_BYTES = 1 << 26
MAX_NODES = 1024
MAX_FRAMES = 1 << 20
# Joints times frames. A row may be shorter than its joints are many, so that a small file could
# ask for much room; three numbers a joint fill MAX_BYTES about here.
MAX_PLACES = 1 << 22
MAX_NUMBER = 1e9
CHANNELS = ("Xposition", "Yposition", "Zposition", "Xrotation", "Yrotation", "Zrotation")
_BY_LOWER = {name.lower(): name for name in CHANNELS}


@dataclass(frozen=True)
class Hierarchy:
    """The joints of a BVH file, depth first, parents before children.

    Attributes:
      names: one a node, no two alike.
      parents: index of each node's parent, -1 for the first.
      offsets: OFFSET of each node, 3 numbers in the file's unit.
      channels: of each node, names from CHANNELS in the order of their numbers.
      ends: (node, offset) of each End Site.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: tuple[tuple[float, float, float], ...]
    channels: tuple[tuple[str, ...], ...]
    ends: tuple[tuple[int, tuple[float, float, float]], ...] = ()

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class Clip:
    """A motion of a `Hierarchy` with n nodes.

    Attributes:
      hierarchy: what moves.
      rotations: float64 [N, n, 4], unit quaternions from a node's frame to its parent's.
      positions: float64 [N, n, 3], a node's place in its parent's frame.
      frame_time: seconds.
    """

    hierarchy: Hierarchy
    rotations: np.ndarray
    positions: np.ndarray
    frame_time: float

    def __len__(self) -> int:
        return len(self.rotations)


def read(path: Path) -> Clip:
    """Reads a BVH file; raises `UserError` as `parse`, and for one of more than MAX_BYTES.

    Names in another encoding than UTF-8 have escapes for their bytes, by which they still differ.
    """
    path = Path(path)
    return parse(read_file(path, MAX_BYTES).decode("utf-8-sig", "backslashreplace"), str(path))


def parse(text: str, name: str = "BVH") -> Clip:
    """Reads the text of a BVH file.

    Args:
      text: of the file; line ends, tabs, case of keywords and place of braces do not matter.
      name: of the file, for errors.

    Raises:
      UserError: whatever is wrong, with the number of its line; more than MAX_NODES joints or
        MAX_FRAMES frames, numbers that are not finite or beyond MAX_NUMBER.
    """
    lines = _Lines(text, name)
    hierarchy = _hierarchy(lines)
    rows, frame_time = _motion(lines, hierarchy)
    return _clip(hierarchy, rows, frame_time)


class _Lines:
    """The lines of a file that are not empty, braces by themselves; knows where it is."""

    def __init__(self, text: str, name: str):
        self.name, self.number = name, 0
        self._stream = self._split(text)
        self._next: tuple[int, str] | None = next(self._stream, None)

    @staticmethod
    def _split(text: str) -> Iterator[tuple[int, str]]:
        for number, line in enumerate(text.splitlines(), 1):
            if "{" in line or "}" in line:
                line = line.replace("{", "\n{\n").replace("}", "\n}\n")
            for part in line.split("\n"):
                if part.strip():
                    yield number, part.strip()

    def peek(self) -> str:
        return self._next[1] if self._next else ""

    def take(self, wanted: str) -> str:
        if self._next is None:
            raise UserError(f"{self.name}: ends where {wanted} should be")
        self.number, line = self._next
        self._next = next(self._stream, None)
        return line

    def error(self, text: str) -> UserError:
        return UserError(f"{self.name}: line {self.number}: {text[:160]}")

    def word(self, wanted: str) -> str:
        """Takes a line that begins with the word `wanted`, returns the rest."""
        line = self.take(wanted)
        words = re.escape(wanted).replace(r"\ ", r"\s+").replace(":", r"\s*:")
        found = re.match(words if wanted.endswith(":") else words + r"(?!\S)", line, re.IGNORECASE)
        if not found:
            raise self.error(f"expected {wanted}, found {line[:40]!r}")
        return line[found.end() :].strip()

    def numbers(self, text: str, count: int, what: str) -> list[float]:
        words = text.split()
        if len(words) != count:
            raise self.error(f"{what} has {len(words)} numbers, expected {count}")
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise self.error(f"{what} has something that is no number") from None
        if not all(abs(v) <= MAX_NUMBER for v in values):  # false for NaN too
            raise self.error(f"{what} has a number that is not finite, or beyond {MAX_NUMBER:g}")
        return values


def _hierarchy(lines: _Lines) -> Hierarchy:
    lines.word("HIERARCHY")
    names, parents, offsets, channels, ends = [], [], [], [], []
    line, keyword, open_nodes = lines.word("ROOT"), "ROOT", []
    while True:
        if keyword == "End":
            lines.word("{")
            ends.append((open_nodes[-1], tuple(lines.numbers(lines.word("OFFSET"), 3, "OFFSET"))))
            lines.word("}")
        else:
            if not line:
                raise lines.error(f"{keyword} has no name")
            if line in names:
                raise lines.error(f"two joints are named {line!r}")
            if len(names) == MAX_NODES:
                raise lines.error(f"more than {MAX_NODES} joints")
            parents.append(open_nodes[-1] if open_nodes else -1)
            names.append(line)
            lines.word("{")
            offsets.append(tuple(lines.numbers(lines.word("OFFSET"), 3, f"OFFSET of {line}")))
            channels.append(_channels(lines))
            open_nodes.append(len(names) - 1)
        while lines.peek() == "}":
            lines.take("}")
            if not open_nodes:
                raise lines.error("a } too many")
            open_nodes.pop()
        if not open_nodes:
            break
        keyword, *rest = lines.take("JOINT, End Site or }").split(None, 1)
        line = rest[0].strip() if rest else ""
        keyword = {"joint": "JOINT", "end": "End"}.get(keyword.lower(), "")
        if not keyword or (keyword == "End" and line.lower() != "site"):
            raise lines.error("expected JOINT, End Site or }")
    if lines.peek().lower().startswith("root"):
        lines.take("MOTION")
        raise lines.error("a second ROOT: split the file, one skeleton each")
    return Hierarchy(tuple(names), tuple(parents), tuple(offsets), tuple(channels), tuple(ends))


def _channels(lines: _Lines) -> tuple[str, ...]:
    if not lines.peek().lower().startswith("channels"):
        return ()
    words = lines.word("CHANNELS").split()
    count, found = words[0] if words else "", words[1:]
    if count != str(len(found)):
        raise lines.error(f"CHANNELS says {count or 'nothing'} and lists {len(found)}")
    unknown = next((w for w in found if w.lower() not in _BY_LOWER), None)
    if unknown is not None:
        raise lines.error(f"unknown channel {unknown[:40]!r} (known: {', '.join(CHANNELS)})")
    channels = tuple(_BY_LOWER[w.lower()] for w in found)
    if len(set(channels)) != len(channels):
        raise lines.error("a channel is listed twice")
    positions = sum(c.endswith("position") for c in channels)
    if positions not in (0, 3):
        raise lines.error("some position channels without the others")
    return channels


def _motion(lines: _Lines, hierarchy: Hierarchy) -> tuple[np.ndarray, float]:
    width = sum(map(len, hierarchy.channels))
    lines.word("MOTION")
    count = lines.word("Frames:")
    if not (count.isascii() and count.isdigit()) or not 1 <= int(count[:12]) <= MAX_FRAMES:
        raise lines.error(f"Frames must be a number from 1 to {MAX_FRAMES}, not {count[:40]!r}")
    if int(count) * len(hierarchy) > MAX_PLACES:
        raise lines.error(f"{count} frames of {len(hierarchy)} joints, the limit is {MAX_PLACES}")
    (frame_time,) = lines.numbers(lines.word("Frame Time:"), 1, "Frame Time")
    if not 1e-4 <= frame_time <= 10:
        raise lines.error(f"Frame Time is {frame_time:g} seconds, expected 0.0001 to 10")
    rows = []
    for i in range(int(count)):
        if not lines.peek():
            raise UserError(f"{lines.name}: has {i} rows of motion, Frames says {count}")
        rows.append(np.array(lines.numbers(lines.take("a row"), width, f"frame {i}")))
    if lines.peek():
        lines.take("the end")
        raise lines.error(f"more rows of motion than Frames says ({count})")
    return np.stack(rows), frame_time


def _clip(hierarchy: Hierarchy, rows: np.ndarray, frame_time: float) -> Clip:
    n = len(hierarchy)
    quaternions = np.zeros((len(rows), n, 4))
    quaternions[..., 0] = 1
    positions = np.broadcast_to(np.array(hierarchy.offsets), (len(rows), n, 3)).copy()
    column = 0
    for node, channels in enumerate(hierarchy.channels):
        order, angles = "", []
        for channel in channels:
            axis = channel[0].lower()
            if channel.endswith("position"):
                positions[:, node, "xyz".index(axis)] = rows[:, column]
            else:
                order += axis
                angles.append(np.radians(rows[:, column]))
            column += 1
        if order:
            quaternions[:, node] = rot.from_euler(np.stack(angles, -1), order)
    return Clip(hierarchy, quaternions, positions, frame_time)


def forward(clip: Clip) -> tuple[np.ndarray, np.ndarray]:
    """Returns (positions [N, n, 3], rotations [N, n, 4]) of the nodes in the world.

    Forward kinematics: P_child = P_parent + R_parent t_child, R_child = R_parent R_local.
    """
    places, turns = clip.positions.copy(), clip.rotations.copy()
    for node, parent in enumerate(clip.hierarchy.parents):
        if parent >= 0:
            places[:, node] = places[:, parent] + rot.rotate(
                turns[:, parent], clip.positions[:, node]
            )
            turns[:, node] = rot.multiply(turns[:, parent], clip.rotations[:, node])
    return places, turns


def resample(clip: Clip, fps: float) -> Clip:
    """Returns the clip at another frame rate, from its first frame to the last that fits.

    Rotations between two frames are interpolated on the sphere (`rotations.slerp`), translations
    linearly, so that forward kinematics keeps the bones' lengths.

    Raises:
      UserError: fps is not positive, or would give more than MAX_FRAMES frames.
    """
    if not 0 < fps <= 1e4:
        raise UserError(f"fps is {fps}, expected a positive number")
    step = 1 / (fps * clip.frame_time)
    # A frame time of 0.0333333 is 1/30: a clip must not lose its last frame to that rounding.
    count = math.floor((len(clip) - 1) / step * (1 + 1e-5) + 1e-5) + 1
    if count > MAX_FRAMES or count * len(clip.hierarchy) > MAX_PLACES:
        raise UserError(f"{count} frames at {fps} fps, the limit is {MAX_FRAMES}")
    time = np.minimum(np.arange(count) * step, len(clip) - 1)
    nearest = np.round(time)
    time = np.where(abs(time - nearest) < 1e-3, nearest, time)
    left = np.minimum(time.astype(int), len(clip) - 1)
    right = np.minimum(left + 1, len(clip) - 1)
    share = (time - left)[:, None]
    positions = clip.positions[left] * (1 - share[..., None])
    positions += clip.positions[right] * share[..., None]
    quaternions = rot.slerp(clip.rotations[left], clip.rotations[right], share)
    return Clip(clip.hierarchy, quaternions, positions, 1 / fps)


def to_text(clip: Clip) -> str:
    """Returns the text of a BVH file; `parse` of it gives the clip back to 6 decimals.

    A joint's rotation is written in the channels that its hierarchy lists for it. Angles go on
    from frame to frame without jumps of 360 degrees.

    Raises:
      UserError: a joint that rotates and has one or two rotation channels, or moves against its
        OFFSET and has no position channels; a name that would break the file.
    """
    blocks = []
    for name in clip.hierarchy.names:
        if [name] != name.strip().splitlines() or set(name) & set("{}"):
            raise UserError(f"joint {name[:40]!r} has a name that a BVH file cannot hold")
    for node, channels in enumerate(clip.hierarchy.channels):
        order = "".join(c[0].lower() for c in channels if c.endswith("rotation"))
        columns = {}
        if len(order) == 3:
            angles = rot.to_euler(rot.to_matrix(clip.rotations[:, node]), order)
            angles = np.degrees(np.unwrap(angles, axis=0))
            columns = dict(zip((a.upper() + "rotation" for a in order), angles.T, strict=True))
        elif abs(clip.rotations[:, node, 1:]).max() > 1e-6:
            name = clip.hierarchy.names[node]
            raise UserError(f"joint {name!r} rotates and has no three rotation channels")
        if any(c.endswith("position") for c in channels):
            columns |= dict(zip(CHANNELS[:3], clip.positions[:, node].T, strict=True))
        elif (
            abs(clip.positions[:, node] - clip.hierarchy.offsets[node]).max()
            > 1e-5 + 1e-5 * abs(clip.positions).max()
        ):
            name = clip.hierarchy.names[node]
            raise UserError(f"joint {name!r} moves and has no position channels")
        zero = np.zeros(len(clip))
        blocks += [columns.get(channel, zero) for channel in channels]
    rows = np.stack(blocks, -1) if blocks else np.zeros((len(clip), 0))
    body = "\n".join(" ".join(f"{v:.6f}" for v in row) for row in rows + 0.0)
    head = f"MOTION\nFrames: {len(clip)}\nFrame Time: {clip.frame_time:.7f}\n"
    return "HIERARCHY\n" + "".join(_node_text(clip.hierarchy)) + head + body + "\n"


def _node_text(hierarchy: Hierarchy) -> Iterator[str]:
    # By a stack, not by recursion: a chain of joints may be longer than Python's stack.
    children: dict[int, list[int]] = {}
    for child, parent in enumerate(hierarchy.parents):
        children.setdefault(parent, []).append(child)
    ends: dict[int, list] = {}
    for parent, offset in hierarchy.ends:
        ends.setdefault(parent, []).append(offset)
    stack: list[tuple[str, int, int]] = [("open", 0, 0)]
    while stack:
        action, node, depth = stack.pop()
        tab = "  " * depth
        if action == "close":
            yield f"{tab}}}\n"
            continue
        kind, channels = "JOINT" if depth else "ROOT", hierarchy.channels[node]
        yield f"{tab}{kind} {hierarchy.names[node]}\n{tab}{{\n"
        yield f"{tab}  OFFSET {_three(hierarchy.offsets[node])}\n"
        if channels:
            yield f"{tab}  CHANNELS {len(channels)} {' '.join(channels)}\n"
        for offset in ends.get(node, [] if node in children else [(0.0, 0.0, 0.0)]):
            yield f"{tab}  End Site\n{tab}  {{\n{tab}    OFFSET {_three(offset)}\n{tab}  }}\n"
        stack.append(("close", node, depth))
        stack += [("open", child, depth + 1) for child in reversed(children.get(node, []))]


def _three(offset) -> str:
    return " ".join(f"{v + 0.0:.6f}" for v in offset)


def write(clip: Clip, path: Path) -> None:
    """Writes a BVH file under a temporary name, then renames it; raises as `to_text`."""
    text, path = to_text(clip), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, "utf-8", "backslashreplace")
    os.replace(temporary, path)
