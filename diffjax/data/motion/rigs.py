"""From a person's own BVH files to a `Skeleton`, and what is needed to write such files again."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffjax.data.motion import bvh, features, naming
from diffjax.data.motion import rotations as rot
from diffjax.data.motion.skeletons import Skeleton
from diffjax.data.reading import reading
from diffjax.errors import UserError, did_you_mean

FIELDS = ("joints", "face", "feet", "lower", "unit", "up", "contact")
HINT = (
    'say so in skeleton.json beside the files, in their names: "face": [right hip, left hip, right '
    'shoulder, left shoulder], "feet": [left ankle, left toe, right ankle, right toe]'
)
# Standing height, toe to head in metres, that a file's unit is guessed from.
PERSON = 1.6


@dataclass(frozen=True, kw_only=True)
class Rig:
    """How a `Skeleton` sits in the hierarchy of BVH files. Kept with a run as JSON.

    Attributes:
      hierarchy: of the files.
      nodes: of each joint, the node that it is.
      unit: metres in the files' unit.
      up: the files' upward axis, "y" or "z".
      rest: of each node, its local rotation in a usual pose: what positions do not tell (the twist
        of a bone) is taken from here.
      places: of each node, its usual place in its parent's frame, in the files' unit: its OFFSET,
        or what position channels put there instead.
    """

    hierarchy: bvh.Hierarchy
    nodes: tuple[int, ...]
    unit: float
    up: str
    rest: tuple[tuple[float, float, float, float], ...]
    places: tuple[tuple[float, float, float], ...]

    def to_json(self) -> dict:
        """Returns a JSON value that `rig_from_json` reads."""
        return dataclasses.asdict(self)


def rig_from_json(value: object, name: str = "rig") -> Rig:
    """Makes a `Rig` of what `Rig.to_json` gave; raises `UserError` for anything else."""
    with reading(name):
        if not isinstance(value, dict):
            raise UserError(f"{name}: expected an object")
        h = value["hierarchy"]
        count = len(h["names"])
        rows = [(*(float(x) for x in row),) for row in h["offsets"]]
        hierarchy = bvh.Hierarchy(
            names=tuple(map(str, h["names"])),
            parents=tuple(map(int, h["parents"])),
            offsets=tuple(rows),
            channels=tuple(tuple(map(str, c)) for c in h["channels"]),
            ends=tuple((int(n), tuple(float(x) for x in o)) for n, o in h["ends"]),
        )
        rig = Rig(
            hierarchy=hierarchy,
            nodes=tuple(map(int, value["nodes"])),
            unit=float(value["unit"]),
            up=str(value["up"]),
            rest=tuple(tuple(float(x) for x in row) for row in value["rest"]),
            places=tuple(tuple(float(x) for x in row) for row in value["places"]),
        )
        shapes = [np.shape(rig.rest), np.shape(rig.places), np.shape(hierarchy.offsets)]
        tree = all(p < i for i, p in enumerate(hierarchy.parents)) and hierarchy.parents[0] == -1
        known = all(set(c) <= set(bvh.CHANNELS) for c in hierarchy.channels)
        inside = all(0 <= n < count for n in (*rig.nodes, *(n for n, _ in hierarchy.ends)))
        if shapes != [(count, 4), (count, 3), (count, 3)] or rig.up not in ("y", "z"):
            raise UserError(f"{name}: its fields do not fit together")
        if not (tree and known and inside and min(hierarchy.parents[1:], default=0) >= 0):
            raise UserError(f"{name}: its hierarchy is no tree of joints")
        return rig


def joints_of(clip: bvh.Clip, rig: Rig) -> np.ndarray:
    """Returns the joints of a clip in metres, y up: float64 [N, J, 3].

    Raises:
      UserError: the clip has other joints than the rig.
    """
    if clip.hierarchy.names != rig.hierarchy.names or clip.hierarchy.parents != (
        rig.hierarchy.parents
    ):
        odd = sorted(set(clip.hierarchy.names) ^ set(rig.hierarchy.names))
        which = f": {odd[0]!r}" if odd else ", or they are joined otherwise"
        raise UserError(f"its joints are not those of the other files{which}")
    places, _ = bvh.forward(clip)
    return upright(places[:, list(rig.nodes)], rig.up) * rig.unit


def upright(points: np.ndarray, up: str) -> np.ndarray:
    """Returns points [..., 3] of a world in which `up` is up, turned so that y is."""
    return points if up == "y" else points[..., [0, 2, 1]] * np.array([1.0, 1.0, -1.0])


def derive(
    clips: Sequence[bvh.Clip], given: dict | None = None, *, fps: float, name: str = "BVH"
) -> tuple[Skeleton, Rig]:
    """Finds the skeleton of BVH clips, which must all have the same joints.

    Joints are the nodes below a node that only carries the body (its one child has position
    channels of its own), without End Sites and nodes at the place of their parent. Left and right,
    feet, hips and shoulders are found by names and tree (`naming`). The bones' directions are the
    coordinate axes nearest to how the clips hold them in the mean; lengths are those of the first
    clip. A unit in which the body is not between 0.5 and 3 m, cm or mm high is taken to make it
    1.6 m.

    Args:
      clips: one or more; a few are enough.
      given: what skeleton.json says, any of: "joints", names of those to use; "face" and "feet",
        four names each; "lower", names; "unit", metres; "up", "y" or "z"; "contact", see
        `Skeleton`, in square metres.
      fps: of the motion that features are made of.
      name: of the data, for errors.

    Raises:
      UserError: what cannot be found, and how to give it.
    """
    given = _checked(given or {}, name)
    hierarchy = clips[0].hierarchy
    worlds = [bvh.forward(clip)[0] for clip in clips]
    nodes = _nodes(hierarchy, worlds, given, name)
    names = tuple(hierarchy.names[n] for n in nodes)
    parents = _parents(hierarchy, nodes)
    pairs = naming.find_pairs(names, parents)
    face, feet = _landmarks(names, parents, pairs, given, name)
    worlds = [world[:, nodes] for world in worlds]
    up = given.get("up") or _up(worlds, feet, name)
    worlds = [upright(world, up) for world in worlds]
    lengths = _lengths(worlds[0], parents)
    legs = [naming.path_to(hip, parents)[-1] for hip in face[:2]]
    lower = [j for j in range(len(names)) if set(legs) & set(naming.path_to(j, parents))]
    if "lower" in given:
        lower = _indices(given["lower"], names, "lower", name)
    rough = Skeleton(
        names=names,
        parents=parents,
        chains=naming.find_chains(names, parents, {j for pair in pairs for j in pair}),
        directions=((0.0, 0.0, 0.0),) + ((0.0, 1.0, 0.0),) * (len(names) - 1),
        lengths=lengths,
        face=face,
        feet=feet,
        leg=(parents[feet[2]], feet[2]),
        pairs=pairs,
        lower=tuple(sorted({0, *lower})),
        contact=float(given.get("contact", 0.002 * (20 / fps) ** 2)),
        fps=float(fps),
    )
    unit = float(given.get("unit") or _unit(rough.height))
    skeleton = dataclasses.replace(
        rough.with_lengths(np.array(lengths) * unit), directions=_directions(worlds, rough)
    )
    rig = Rig(
        hierarchy=hierarchy,
        nodes=tuple(nodes),
        unit=unit,
        up=up,
        rest=tuple(map(tuple, _usual(clips).tolist())),
        places=tuple(map(tuple, np.median(clips[0].positions, 0).tolist())),
    )
    return skeleton, rig


def _checked(given: dict, name: str) -> dict:
    where = f"{name}: skeleton.json"
    if not isinstance(given, dict):
        raise UserError(f"{where}: expected an object")
    for field, value in given.items():
        if field not in FIELDS:
            raise UserError(f"{where}: unknown field {field!r}{did_you_mean(field, FIELDS)}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if field in ("unit", "contact"):
            if not number or not 0 < value < 1e6:
                raise UserError(f"{where}: {field!r} must be a positive number")
        elif field == "up":
            if value not in ("y", "z"):
                raise UserError(f'{where}: "up" must be "y" or "z"')
        elif not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise UserError(f"{where}: {field!r} must be a list of joints' names")
    return given


def _indices(words: Sequence[str], names: Sequence[str], field: str, name: str) -> list[int]:
    for word in words:
        if word not in names:
            near = did_you_mean(word, names)
            raise UserError(f"{name}: skeleton.json: {field}: no joint {word!r}{near}")
    return [names.index(word) for word in words]


def _nodes(hierarchy: bvh.Hierarchy, worlds: list, given: dict, name: str) -> list[int]:
    if "joints" in given:
        nodes = sorted(set(_indices(given["joints"], hierarchy.names, "joints", name)))
    else:
        start, everything = 0, range(len(hierarchy))
        while True:
            children = [n for n in everything if hierarchy.parents[n] == start]
            if len(children) != 1 or not any(
                c.endswith("position") for c in hierarchy.channels[children[0]]
            ):
                break
            start = children[0]
        nodes = [n for n in everything if start in naming.path_to(n, hierarchy.parents)]
    size = np.ptp(worlds[0][0], axis=0).max()
    kept = nodes[:1]
    for node in nodes[1:]:
        ancestors = [a for a in naming.path_to(node, hierarchy.parents)[:-1] if a in kept]
        if not ancestors:
            raise UserError(f"{name}: skeleton.json: joints: they must lie below the first of them")
        apart = [np.linalg.norm(w[:, node] - w[:, ancestors[-1]], axis=-1).max() for w in worlds]
        if max(apart) > 1e-4 * size:
            kept.append(node)
    if len(kept) < 2:
        raise UserError(f"{name}: a skeleton must have two joints or more")
    return kept


def _parents(hierarchy: bvh.Hierarchy, nodes: list[int]) -> tuple[int, ...]:
    parents = []
    for node in nodes:
        above = [a for a in naming.path_to(node, hierarchy.parents)[:-1] if a in nodes]
        parents.append(nodes.index(above[-1]) if above else -1)
    return tuple(parents)


def _landmarks(names, parents, pairs, given: dict, name: str) -> tuple[tuple, tuple]:
    """The `face` and `feet` of the skeleton."""
    found = {}
    for field in ("face", "feet"):
        if field in given:
            found[field] = tuple(_indices(given[field], names, field, name))
            if len(found[field]) != 4:
                raise UserError(f"{name}: skeleton.json: {field!r} must be four names")
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    legs = [naming.find_leg(side, names, parents) for side in (left, right)]
    arms = [naming.find_shoulder(side, names, parents) for side in (left, right)]
    for what, parts, field in (("feet", legs, "feet"), ("hips", legs, "face")):
        if None in parts and field not in found:
            raise UserError(f"{name}: cannot tell which joints are the {what}; {HINT}")
    if None in arms and "face" not in found:
        raise UserError(f"{name}: cannot tell which joints are the shoulders; {HINT}")
    if "face" not in found:
        found["face"] = (legs[1][0], legs[0][0], arms[1], arms[0])
    if "feet" not in found:
        found["feet"] = (*legs[0][1:], *legs[1][1:])
    return found["face"], found["feet"]


def _up(worlds: list, feet: tuple, name: str) -> str:
    up = np.mean([(w[:, 0] - w[:, list(feet)].mean(1)).mean(0) for w in worlds], 0)
    axis = int(abs(up).argmax())
    if axis == 0 or up[axis] < 0:
        raise UserError(
            f'{name}: cannot tell which axis is up; give "up": "y" or "z" in skeleton.json'
        )
    return "xyz"[axis]


def _lengths(world: np.ndarray, parents: Sequence[int]) -> tuple[float, ...]:
    bones = np.linalg.norm(world[:, 1:] - world[:, list(parents[1:])], axis=-1)
    return (0.0, *np.median(bones, 0).tolist())


def _usual(clips: Sequence[bvh.Clip]) -> np.ndarray:
    """The mean rotation of each node, the main axis of its quaternions (Markley et al. 2007)."""
    total = sum(np.einsum("tni,tnj->nij", c.rotations, c.rotations) / len(c) for c in clips)
    mean = np.linalg.eigh(total)[1][..., -1]
    return np.where(mean[:, :1] < 0, -mean, mean)


def _unit(height: float) -> float:
    for unit in (1.0, 0.01, 0.001):
        if 0.5 <= height * unit <= 3.0:
            return unit
    return PERSON / height


def _directions(worlds: list, skeleton: Skeleton) -> tuple[tuple[float, float, float], ...]:
    """The axis nearest to the mean direction of each bone, seen from the body; for a left and its
    right bone each other's mirror."""
    total = np.zeros((len(skeleton), 3))
    for world in worlds:
        turn = features.root_rotations(world, skeleton, smoothing=0)
        bones = rot.unit(world - world[:, [max(p, 0) for p in skeleton.parents]])
        total += rot.rotate(turn[:, None], bones).mean(0)
    total += total[list(skeleton.mirrored())] * np.array([-1.0, 1.0, 1.0])
    axes = np.eye(3)[abs(total).argmax(-1)] * np.sign(total)
    axes[0] = 0
    return tuple(map(tuple, (axes + 0.0).tolist()))
