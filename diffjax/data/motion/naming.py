"""What the names of joints tell: left and right, feet, hips and shoulders.

Names differ from tool to tool (LeftUpLeg, thigh.L, l_hip, mixamorig:LeftUpLeg, lfemur); sides are
told by a word or letter, the rest mostly by the place in the tree.
"""

import re
from collections.abc import Sequence

_SWAP = {"left": "right", "lft": "rgt", "l": "r"}
_SWAP |= {right: left for left, right in _SWAP.items()}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^A-Za-z\d]+")
_LEFT = {"left", "lft", "l"}
_UPPER_ARM = re.compile(r"upper[ _.-]?arm|humerus", re.IGNORECASE)

# Words of captions and class names that a mirror exchanges.
_MIRROR = {"left": "right", "clockwise": "counterclockwise"}
_MIRROR |= {"right": "left", "counterclockwise": "clockwise"}
_MIRROR |= {"anticlockwise": "clockwise", "counter-clockwise": "clockwise"}
_MIRROR |= {"anti-clockwise": "clockwise", "leftward": "rightward", "rightward": "leftward"}
_MIRROR |= {"leftwards": "rightwards", "rightwards": "leftwards"}
_MIRROR |= {"leftmost": "rightmost", "rightmost": "leftmost"}
_MIRROR |= {"counter clockwise": "clockwise", "anti clockwise": "clockwise"}
_WORDS = "|".join(sorted(_MIRROR, key=len, reverse=True))
# A word by itself, or inside a name such as TurnLeft or leftTurn.
_MIRRORED = re.compile(
    rf"(?i:(?<![a-z])(?:{_WORDS})(?![a-z]))|(?<=[a-z])(?:Left|Right)(?![a-z])"
    "|(?<![A-Za-z])(?:[Ll]eft|[Rr]ight)(?=[A-Z])"
)


def _like(word: str, model: str) -> str:
    if model.isupper():
        return word.upper()
    return word.capitalize() if model[:1].isupper() else word


def other_side(name: str) -> tuple[str, ...]:
    """Returns what the same joint of the other side may be called, likeliest first."""
    words = _WORD.findall(name)
    found = []
    for i, word in enumerate(words):
        if word.lower() in _SWAP:
            other = _like(_SWAP[word.lower()], word)
            found.append("".join([*words[:i], other, *words[i + 1 :]]))
    for word, other in (("left", "right"), ("right", "left")):  # lefthand and LEFTHAND
        if name.lower().startswith(word) and (name.islower() or name.isupper()):
            found.append(_like(other, name) + name[len(word) :])
    first = name[:1]
    # lfemur and LUArm, without anything between
    if first in ("l", "r") or (first in ("L", "R") and name[1:2].isupper()):
        found.append(_like(_SWAP[first.lower()], first) + name[1:])
    return tuple(found)


def is_left(name: str, other: str) -> bool:
    """Returns whether of two joints that are each other's mirror the first is the left one."""
    for a, b in zip(_WORD.findall(name), _WORD.findall(other)):
        if a != b:
            return a.lower() in _LEFT or (a.lower() not in _SWAP and a[:1] in "lL")
    return name < other


def find_pairs(names: Sequence[str], parents: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Returns the (left, right) joints that are each other's mirror by name and place."""
    index = {name: i for i, name in enumerate(names)}
    pairs = []
    for i, name in enumerate(names):
        j = next((index[o] for o in other_side(name) if o in index and o != name), None)
        if j is not None and is_left(name, names[j]):
            pairs.append((i, j))
    # A pair whose parents are neither one joint nor a pair would tear the body in a mirror.
    while True:
        swap = {a: b for pair in pairs for a, b in (pair, pair[::-1])}
        good = [
            (a, b)
            for a, b in pairs
            if swap.get(parents[a], parents[a]) == parents[b]
            and swap.get(a) == b
            and swap.get(b) == a
        ]
        if len(good) == len(pairs):
            return tuple(good)
        pairs = good


def path_to(joint: int, parents: Sequence[int]) -> list[int]:
    """Returns the joints from the root to `joint`, both included."""
    path = [joint]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]


def _first(side: Sequence[int], names, parents, *words: str) -> int | None:
    """The joint nearest to the root whose name has one of the words."""
    found = [j for j in side if any(word in names[j].lower() for word in words)]
    return min(found, key=lambda j: (len(path_to(j, parents)), j), default=None)


def find_leg(side: Sequence[int], names, parents) -> tuple[int, int, int] | None:
    """Returns (hip, ankle, toe) of one side, or None; a foot without a toe gives the ankle twice.

    Args:
      side: its joints.
      names, parents: of all joints.
    """
    ankle = _first(side, names, parents, "foot", "ankle")
    if ankle is None:
        return None
    on_side = set(side)
    hip = next((j for j in path_to(ankle, parents) if j in on_side), ankle)
    toes = [j for j in range(len(names)) if parents[j] == ankle]
    toe = _first(toes, names, parents, "toe", "ball", "foot")
    return hip, ankle, toe if toe is not None else (toes or [ankle])[0]


def find_shoulder(side: Sequence[int], names, parents) -> int | None:
    """Returns the joint where the upper arm of one side begins, or None: the one of such a name,
    else two before the hand."""
    hand = _first(side, names, parents, "hand", "wrist")
    path = path_to(hand, parents) if hand is not None else []
    named = next((j for j in path if _UPPER_ARM.search(names[j])), None)
    if named is not None:
        return named
    if len(path) >= 3:
        return path[-3]
    elbow = _first(side, names, parents, "elbow", "forearm", "lowerarm")
    return parents[elbow] if elbow is not None and parents[elbow] > 0 else None


def find_chains(names: Sequence[str], parents: Sequence[int], paired: set[int]) -> tuple:
    """Returns chains that cover the tree (see `Skeleton.chains`).

    A chain goes on through a joint of several children to the one in the middle of the body, else
    to the one with most joints below it.
    """
    children: dict[int, list[int]] = {}
    below = [1] * len(names)
    for joint in sorted(range(len(names)), key=lambda j: -len(path_to(j, parents))):
        if parents[joint] >= 0:
            below[parents[joint]] += below[joint]
    for joint, parent in enumerate(parents):
        children.setdefault(parent, []).append(joint)
    chains, starts = [], [(0, child) for child in children.get(0, [])]
    while starts:
        chain = list(starts.pop(0))
        while children.get(chain[-1]):
            here = chain[-1]
            onward = max(children[here], key=lambda j: (j not in paired, below[j], -j))
            starts += [(here, child) for child in children[here] if child != onward]
            chain.append(onward)
        chains.append(tuple(chain))
    return tuple(chains)


def mirror_text(text: str) -> str:
    """Returns a caption or class name as it reads in a mirror: left and right are exchanged, and
    clockwise and counterclockwise.

    >>> mirror_text("a person turns Left, then clockwise")
    'a person turns Right, then counterclockwise'
    """
    return _MIRRORED.sub(lambda m: _like(_MIRROR[m[0].lower()], m[0]), text)
