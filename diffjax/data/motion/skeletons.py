"""What moves: names, tree, proportions and the few joints that the features need to know.

HumanML3D's 22 joints, SMPL's 24 and KIT's 21 are here as published; `rigs.derive` makes one for
any BVH file.
"""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffjax.data.reading import read_file, reading
from diffjax.errors import UserError

MAX_JOINTS = 1024
MAX_JSON_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """J joints and what the features are made of. Hashable: a static argument of jit.

    y is up; a body that faces +z has its left at +x. Lengths are in `unit` metres.

    Attributes:
      names: of the joints; joint 0 is the root (the pelvis).
      parents: of each joint, -1 for the root.
      chains: each a path down the tree; together they hold every joint but the root once behind
        its first place. A chain that starts inside has its rotations told relative to the root.
      directions: unit vector of the bone that ends in each joint, in the pose where all rotations
        are the identity (0 for the root). Any choice will do that no bone often points against.
      lengths: of the same bones, 0 for the root.
      face: right hip, left hip, right shoulder, left shoulder: which way the body faces.
      feet: left ankle, left toe, right ankle, right toe; a foot of one joint is given twice.
      leg: knee and ankle, whose bones scale one skeleton to another.
      pairs: (left, right) joints that change places in a mirror.
      lower: joints of the lower body, the root among them: what editing the upper body keeps.
      contact: squared distance a frame below which a foot joint counts as standing.
      fps: frames a second.
      unit: metres in a unit of lengths and positions.

    Raises:
      UserError: fields that do not fit together; the line names the field.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    chains: tuple[tuple[int, ...], ...]
    directions: tuple[tuple[float, float, float], ...]
    lengths: tuple[float, ...]
    face: tuple[int, int, int, int]
    feet: tuple[int, int, int, int]
    leg: tuple[int, int]
    pairs: tuple[tuple[int, int], ...] = ()
    lower: tuple[int, ...] = (0,)
    contact: float = 0.002
    fps: float = 20.0
    unit: float = 1.0

    def __post_init__(self):
        for field, problem in _problems(self):
            raise UserError(f"skeleton: {field} {problem}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def size(self) -> int:
        """Features a frame, 12 J - 1."""
        return 12 * len(self) - 1

    @functools.cached_property
    def previous(self) -> tuple[int, ...]:
        """Of each joint, the one whose rotation its own is relative to: the joint before it in its
        chain, and the root where a chain starts."""
        before = [0] * len(self)
        for chain in self.chains:
            for a, b in zip(chain[1:], chain[2:]):
                before[b] = a
        return tuple(before)

    @functools.cached_property
    def order(self) -> tuple[int, ...]:
        """All joints but the root, parents before children."""
        done, order = {0}, []
        while len(order) < len(self) - 1:
            for joint in range(1, len(self)):
                if joint not in done and self.parents[joint] in done:
                    done.add(joint)
                    order.append(joint)
        return tuple(order)

    @property
    def offsets(self) -> np.ndarray:
        """float64 [J, 3]: directions times lengths."""
        return np.array(self.directions) * np.array(self.lengths)[:, None]

    @property
    def height(self) -> float:
        """About the body's height: the longest way between two ends of the tree, which for a
        person is that from toe to head or from hand to foot."""
        down = np.zeros(len(self))
        best = 0.0
        for joint in reversed(self.order):
            parent = self.parents[joint]
            way = down[joint] + self.lengths[joint]
            best = max(best, down[parent] + way)
            down[parent] = max(down[parent], way)
        return best

    def mirrored(self) -> tuple[int, ...]:
        """Returns for each joint the one that takes its place in a mirror."""
        swap = list(range(len(self)))
        for left, right in self.pairs:
            swap[left], swap[right] = right, left
        return tuple(swap)

    def with_lengths(self, lengths) -> "Skeleton":
        return dataclasses.replace(self, lengths=tuple(float(v) for v in lengths))

    def to_json(self) -> dict:
        """Returns a JSON value that `from_json` reads."""
        return dataclasses.asdict(self)


def _problems(s: Skeleton):
    count = len(s.names)
    if not 2 <= count <= MAX_JOINTS or len(set(s.names)) != count:
        yield "names", f"must be 2 to {MAX_JOINTS} names, no two alike"
    for field in ("parents", "directions", "lengths"):
        if len(getattr(s, field)) != count:
            yield field, f"has {len(getattr(s, field))} entries for {count} joints"
    used = [*s.face, *s.feet, *s.leg, *s.lower, *(j for p in s.pairs for j in p)]
    for joint in [*used, *s.parents[1:], *(j for c in s.chains for j in c)]:
        if not 0 <= joint < count:
            yield "parents, chains, face, feet, leg, pairs or lower", f"has no joint {joint}"
    if s.parents[0] != -1:
        yield "parents", "must begin with -1"
    for joint in range(count):
        steps = 0
        while joint > 0:
            joint, steps = s.parents[joint], steps + 1
            if steps > count:
                yield "parents", "go in a circle"
                return
    links = [(a, b) for c in s.chains for a, b in zip(c, c[1:])]
    if sorted(b for _, b in links) != list(range(1, count)):
        yield "chains", "must lead to every joint but the root once"
    if any(s.parents[b] != a for a, b in links):
        yield "chains", "must go from parents to children"
    numbers = np.array([*s.lengths, *np.ravel(s.directions), s.contact, s.fps, s.unit], float)
    if not np.isfinite(numbers).all() or abs(numbers).max() > 1e9:
        yield "lengths, directions, contact, fps or unit", "is not a finite number"
    if min(s.fps, s.unit) <= 0 or min(s.lengths) < 0:
        yield "fps, unit or lengths", "must be positive"
    for name, wanted in (("face", 4), ("feet", 4), ("leg", 2)):
        if len(getattr(s, name)) != wanted:
            yield name, f"must be {wanted} joints"
    sides = [j for p in s.pairs for j in p]
    if any(len(p) != 2 for p in s.pairs) or len(set(sides)) != len(sides):
        yield "pairs", "must be pairs of joints, each joint in one at most"


def from_json(value: object, name: str = "skeleton") -> Skeleton:
    """Makes a `Skeleton` of what `Skeleton.to_json` gave.

    Raises:
      UserError: fields missing, unknown or not what they should be; the line starts with `name`.
    """
    fields = {f.name: f for f in dataclasses.fields(Skeleton)}
    if not isinstance(value, dict):
        raise UserError(f"{name}: expected an object")
    for field in value:
        if field not in fields:
            raise UserError(f"{name}: unknown field {str(field)[:40]!r}")
    for field, about in fields.items():
        if about.default is dataclasses.MISSING and field not in value:
            raise UserError(f"{name}: no field {field!r}")
    with reading(name):
        kinds = {field: _KINDS[field](value[field]) for field in value}
        return Skeleton(**kinds)


def _integers(value) -> tuple[int, ...]:
    if any(not isinstance(v, int) or isinstance(v, bool) for v in value):
        raise UserError("a joint must be an integer")
    return tuple(value)


_KINDS = {
    "names": lambda v: tuple(str(x)[:200] for x in v),
    "directions": lambda v: tuple(tuple(float(x) for x in np.reshape(row, (3,))) for row in v),
    "lengths": lambda v: tuple(float(x) for x in v),
    "chains": lambda v: tuple(_integers(x) for x in v),
    "pairs": lambda v: tuple(_integers(x) for x in v),
    **dict.fromkeys(("parents", "face", "feet", "leg", "lower"), _integers),
    **dict.fromkeys(("contact", "fps", "unit"), float),
}


def read_json(path: Path) -> object:
    """Returns what a JSON file of up to MAX_JSON_BYTES holds; raises `UserError` for a bad one."""
    text = read_file(Path(path), MAX_JSON_BYTES)
    with reading(path):
        return json.loads(text)


def _published(names: str, chains, directions: dict, lengths, **more) -> Skeleton:
    words = tuple(names.split())
    parents = [-1] * len(words)
    for chain in chains:
        for a, b in zip(chain, chain[1:]):
            parents[b] = a
    axes = {"+x": (1, 0, 0), "-x": (-1, 0, 0), "+y": (0, 1, 0), "-y": (0, -1, 0), "+z": (0, 0, 1)}
    rows = [(0.0, 0.0, 0.0)] * len(words)
    for axis, joints in directions.items():
        for joint in joints:
            rows[joint] = tuple(map(float, axes[axis]))
    return Skeleton(
        names=words,
        parents=tuple(parents),
        chains=chains,
        directions=tuple(rows),
        lengths=(0.0, *lengths),
        **more,
    )


# Lengths of the target skeleton (clip 000021), which all clips of the data set share.
HUMANML3D = _published(
    "pelvis left_hip right_hip spine1 left_knee right_knee spine2 left_ankle right_ankle spine3 "
    "left_foot right_foot neck left_collar right_collar head left_shoulder right_shoulder "
    "left_elbow right_elbow left_wrist right_wrist",
    chains=(
        (0, 2, 5, 8, 11),
        (0, 1, 4, 7, 10),
        (0, 3, 6, 9, 12, 15),
        (9, 14, 17, 19, 21),
        (9, 13, 16, 18, 20),
    ),
    directions={
        "+x": (1, 13),
        "-x": (2, 14),
        "+y": (3, 6, 9, 12),
        "-y": (4, 5, 7, 8, *range(16, 22)),
        "+z": (10, 11, 15),
    },
    lengths=(0.103074, 0.109883, 0.131568, 0.393623, 0.390188, 0.143190, 0.432433, 0.425643)
    + (0.057365, 0.143382, 0.149419, 0.219360, 0.137487, 0.143383, 0.103039, 0.131614, 0.122984)
    + (0.256840, 0.263092, 0.266012, 0.269876),
    face=(2, 1, 17, 16),
    feet=(7, 10, 8, 11),
    leg=(5, 8),
    pairs=((1, 2), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (18, 19), (20, 21)),
    lower=(0, 1, 2, 4, 5, 7, 8, 10, 11),
)

# SMPL's 24 joints are HumanML3D's and two hands, whose length here is only a usual one.
SMPL = dataclasses.replace(
    HUMANML3D,
    names=(*HUMANML3D.names, "left_hand", "right_hand"),
    parents=(*HUMANML3D.parents, 20, 21),
    chains=(*HUMANML3D.chains[:3], (9, 14, 17, 19, 21, 23), (9, 13, 16, 18, 20, 22)),
    directions=(*HUMANML3D.directions, (0.0, -1.0, 0.0), (0.0, -1.0, 0.0)),
    lengths=(*HUMANML3D.lengths, 0.085, 0.085),
    pairs=(*HUMANML3D.pairs, (22, 23)),
)

# By these indices the "right" hip (11) lies at +x, opposite to HumanML3D: kept as published, and
# so are contacts below 0.05 mm^2 a frame. The lengths are not published with the code: a rest pose
# of usual proportions, for drawing and BVH; the features take those of their clip.
KIT = _published(
    "pelvis spine1 spine2 neck head right_shoulder right_elbow right_wrist left_shoulder "
    "left_elbow left_wrist right_hip right_knee right_ankle right_heel right_toe left_hip "
    "left_knee left_ankle left_heel left_toe",
    chains=(
        (0, 11, 12, 13, 14, 15),
        (0, 16, 17, 18, 19, 20),
        (0, 1, 2, 3, 4),
        (3, 5, 6, 7),
        (3, 8, 9, 10),
    ),
    directions={
        "+x": (5, 11),
        "-x": (8, 16),
        "+y": (1, 2, 3, 4),
        "-y": (6, 7, 9, 10, 12, 13, 17, 18),
        "+z": (14, 15, 19, 20),
    },
    lengths=(96, 150, 230, 160, 190, 270, 240, 190, 270, 240)
    + (90, 400, 390, 60, 110, 90, 400, 390, 60, 110),
    face=(11, 16, 5, 8),
    feet=(19, 20, 14, 15),
    leg=(17, 18),
    pairs=((16, 11), (17, 12), (18, 13), (19, 14), (20, 15), (8, 5), (9, 6), (10, 7)),
    lower=(0, *range(11, 21)),
    contact=0.05,
    fps=12.5,
    unit=0.001,
)
