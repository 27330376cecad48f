"""Reads what a pickle describes without running it: plain data, and nothing is ever called.

A pickle is a program for a small stack machine. Most of its opcodes make plain data; a few fetch a
function by name from any installed module and call it, and that is how opening a file comes to run
somebody's code. The machine here knows the plain opcodes. A name in the file is looked up in a
table that the caller gives, never in a module; what the table maps it to is a function of ours that
makes a plain value or a `Record`. Every other name and every other opcode is refused.

The opcodes are those of the standard library's pickletools, which documents them.
"""

import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffjax.errors import UserError

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Limits:
    """What one pickle may ask for. The largest published files stay below a tenth of these.

    Attributes:
      opcodes: length of the program; bounds time, and memory to about 200 bytes each.
      depth: of containers in containers.
      values: of the result when shared parts are counted each time that they are met, so that code
        which walks it is not sent round for ever ("billion laughs").
      text: bytes of one string.
      integer: bytes of one integer.
    """

    opcodes: int = 1_000_000
    depth: int = 100
    values: int = 2_000_000
    text: int = 16 << 20
    integer: int = 16


class Name:
    """A global that the file names, and the function of ours that stands for it (or None)."""

    __slots__ = ("make", "module", "name")

    def __init__(self, module: str, name: str, make: Callable | None):
        self.module, self.name, self.make = module, name, make

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Record:
    """What stands for an object of somebody else's class: its class' name and its state.

    Attributes:
      kind: the class' name.
      state: what the file says of it, a dict; None until BUILD.
    """

    __slots__ = ("kind", "state")

    def __init__(self, kind: str, state: Any = None):
        self.kind, self.state = kind, state

    def build(self, state: Any) -> None:
        """Takes the state that the file gives after making the object; once."""
        if self.state is not None:
            raise ValueError(f"{self.kind} gets its state twice")
        self.state = state


class Bad(ValueError):
    """What is wrong with a pickle; `load` adds the file and the place."""


_MARK = object()


class _Machine:
    """One run over one pickle. A method an opcode; `TABLE` maps the opcode's byte to it."""

    def __init__(self, data: memoryview, start: int, names: dict, persistent, limits: Limits):
        self.data, self.at = data, start
        self.names, self.persistent, self.limits = names, persistent, limits
        self.stack: list = []
        self.memo: dict[int, Any] = {}

    def run(self):
        for _ in range(self.limits.opcodes):
            if self.at >= len(self.data):
                raise Bad("is cut short")
            code = self.data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                if len(self.stack) != 1 or self.stack[0] is _MARK:
                    raise Bad("ends with other than one value")
                return self.stack[0]
            step = TABLE.get(code)
            if step is None:
                raise Bad(f"uses the opcode {_opcode(code)}, which no file of weights needs")
            step(self)
        raise Bad(f"has more than {self.limits.opcodes} opcodes")

    # --- the bytes

    def take(self, n: int) -> memoryview:
        """The next n bytes, as a view: nothing is copied or reserved on the file's word."""
        if n > len(self.data) - self.at:
            raise Bad("is cut short")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, length: int) -> None:
        if length > self.limits.text:
            raise Bad(f"has a text of {length} bytes")
        self.push(str(self.take(length), "utf-8"))

    def line(self) -> str:
        """Text up to the end of the line, which GLOBAL alone uses."""
        head = bytes(self.data[self.at : self.at + 512])
        end = head.find(b"\n")
        if end < 0:
            raise Bad("has a name without an end")
        self.at += end + 1
        return head[:end].decode()

    def integer(self, length: int) -> None:
        if not 0 <= length <= self.limits.integer:
            raise Bad(f"has an integer of {length} bytes")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    # --- the stack

    def push(self, value) -> None:
        self.stack.append(value)

    def pop(self):
        if not self.stack or self.stack[-1] is _MARK:
            raise Bad("takes a value from an empty stack")
        return self.stack.pop()

    def top(self):
        if not self.stack or self.stack[-1] is _MARK:
            raise Bad("takes a value from an empty stack")
        return self.stack[-1]

    def since_mark(self) -> list:
        values = []
        while self.stack:
            value = self.stack.pop()
            if value is _MARK:
                return values[::-1]
            values.append(value)
        raise Bad("looks for a mark that it never set")

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Bad(f"recalls value {index} that it never remembered")
        self.push(self.memo[index])

    # --- containers

    def append(self, values: list) -> None:
        target = self.top()
        if type(target) is not list:
            raise Bad(f"appends to {_kind(target)}")
        target.extend(values)

    def set_items(self, items: list) -> None:
        target = self.top()
        if not isinstance(target, dict):
            raise Bad(f"sets items of {_kind(target)}")
        if len(items) % 2:
            raise Bad("sets an item without a value")
        for key, value in zip(items[::2], items[1::2]):
            # Nothing else is a key in a file of weights. A nested tuple's hash takes time
            # exponential in its depth, and integers of 2^61 and more can be made to collide.
            if type(key) is not str and not (type(key) is int and abs(key) < 1 << 60):
                raise Bad(f"has {_kind(key)} for a key")
            target[key] = value

    def tuple(self, length: int) -> None:
        self.push(tuple([self.pop() for _ in range(length)][::-1]))

    # --- names, and what would be calls

    def named(self, module, name) -> None:
        if type(module) is not str or type(name) is not str:
            raise Bad("names a global with something that is no text")
        if (module, name) not in self.names:
            raise Bad(
                f"asks for {_short(module)}.{_short(name)}, which is not on the list of what files "
                "of weights need; nothing of it was run"
            )
        self.push(Name(module, name, self.names[module, name]))

    def make(self) -> None:
        arguments, name = self.pop(), self.pop()
        if type(name) is not Name or name.make is None:
            raise Bad(f"calls {name if type(name) is Name else _kind(name)}")
        if type(arguments) is not tuple:
            raise Bad(f"calls {name} with {_kind(arguments)} for arguments")
        try:
            self.push(name.make(*arguments))
        except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
            raise Bad(f"has a broken {name} ({_short(str(error))})") from error

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Record):
            target.build(state)
        elif not isinstance(target, dict):
            raise Bad(f"gives a state to {_kind(target)}")
        # A dict's state is the attributes of an OrderedDict, such as a state dict's _metadata,
        # which nobody needs.

    def persistent_id(self) -> None:
        if self.persistent is None:
            raise Bad("refers to data outside itself")
        self.push(self.persistent(self.pop()))

    def protocol(self) -> None:
        version = self.take(1)[0]
        if not 2 <= version <= 5:
            raise Bad(f"is of pickle protocol {version}, not 2 to 5")

    def frame(self) -> None:
        # A frame only says how much to read ahead, and all is there already.
        if self.number("<Q") > len(self.data) - self.at:
            raise Bad("is cut short")


TABLE: dict[int, Callable[[_Machine], None]] = {
    0x80: _Machine.protocol,
    0x95: _Machine.frame,
    ord("("): lambda m: m.push(_MARK),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    # numbers
    ord("J"): lambda m: m.push(m.number("<i")),  # BININT
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    ord("G"): lambda m: m.push(m.number(">d")),  # BINFLOAT
    0x8A: lambda m: m.integer(m.number("<B")),  # LONG1
    0x8B: lambda m: m.integer(m.number("<i")),  # LONG4
    # text and bytes; bytes stay views into the file
    ord("X"): lambda m: m.text(m.number("<I")),  # BINUNICODE
    0x8C: lambda m: m.text(m.number("<B")),
    0x8D: lambda m: m.text(m.number("<Q")),
    ord("B"): lambda m: m.push(m.take(m.number("<I"))),  # BINBYTES
    ord("C"): lambda m: m.push(m.take(m.number("<B"))),
    0x8E: lambda m: m.push(m.take(m.number("<Q"))),
    # containers; a set becomes a list, for nobody asks one here what it holds
    ord("}"): lambda m: m.push({}),
    ord("]"): lambda m: m.push([]),
    ord(")"): lambda m: m.push(()),
    0x8F: lambda m: m.push([]),  # EMPTY_SET
    0x85: lambda m: m.tuple(1),
    0x86: lambda m: m.tuple(2),
    0x87: lambda m: m.tuple(3),
    ord("t"): lambda m: m.push(tuple(m.since_mark())),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.since_mark()),
    0x90: lambda m: m.append(m.since_mark()),  # ADDITEMS
    ord("s"): lambda m: m.set_items([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.since_mark()),
    # memory
    0x94: lambda m: m.remember(len(m.memo)),  # MEMOIZE
    ord("q"): lambda m: m.remember(m.number("<B")),
    ord("r"): lambda m: m.remember(m.number("<I")),
    ord("h"): lambda m: m.recall(m.number("<B")),
    ord("j"): lambda m: m.recall(m.number("<I")),
    # names, and what would be calls
    ord("c"): lambda m: m.named(m.line(), m.line()),  # GLOBAL
    0x93: lambda m: m.named(*[m.pop(), m.pop()][::-1]),  # STACK_GLOBAL
    ord("R"): _Machine.make,  # REDUCE
    0x81: _Machine.make,  # NEWOBJ
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent_id,
}


def load(
    data: Buffer,
    where: str,
    names: dict[tuple[str, str], Callable | None],
    *,
    start: int = 0,
    persistent: Callable[[Any], Any] | None = None,
    limits: Limits = Limits(),
) -> tuple[Any, int]:
    """Reads the pickle that begins at data[start].

    Args:
      data: the file, or the part of it that holds the pickle.
      where: the file's name, for messages.
      names: (module, name) -> what stands for that global: a function of plain arguments that
        returns a plain value or a `Record` (it may raise `ValueError`), or None for a name that
        may be mentioned but not called. It sees containers that the file may still change: it
        must look inside tuples only.
      persistent: what a persistent id stands for; None: the file may have none.
      limits: what the file may ask for.

    Returns:
      (value, end): None, bool, int, float, str, memoryview, list, tuple, dict, `Name`, and what the
      functions return; `end` is the place after the pickle. The value is no deeper than
      `limits.depth` and never holds itself, so that it may be walked by recursion.

    Raises:
      UserError: anything else than a pickle of plain data and these names, within the limits.
    """
    machine = _Machine(memoryview(data), start, names, persistent, limits)
    try:
        value = machine.run()
        _check_tree(value, limits)
    except Bad as bad:
        raise UserError(f"{where}: the pickle in it {bad} (byte {machine.at})") from bad
    except ValueError as error:  # of text that is not UTF-8, of a Record's build
        reason = _short(str(error))
        raise UserError(f"{where}: cannot be read ({reason}, byte {machine.at})") from error
    return value, machine.at


def _children(value) -> tuple | list:
    if type(value) in (list, tuple):
        return value
    if isinstance(value, dict):
        return list(value.values())  # keys are text and numbers
    if isinstance(value, Record):
        return (value.state,)
    return ()


def _check_tree(root, limits: Limits) -> None:
    """Refuses a value that holds itself, is too deep, or is too large once shared parts count.

    Depth first with a stack of its own; each container is entered once, so this is linear.
    """
    done: dict[int, tuple[int, int] | None] = {}  # id -> (depth, values); None while it is open
    stack, entered, depth = [(root, False)], 0, 0
    while stack:
        value, leaving = stack.pop()
        parts = _children(value)
        if not parts:
            continue
        if leaving:
            inside = [done[id(p)] for p in parts if id(p) in done]
            depth = 1 + max((d for d, _ in inside), default=0)
            size = 1 + len(parts) + sum(n for _, n in inside)
            if size > limits.values:
                raise Bad(f"unfolds to more than {limits.values} values")
            done[id(value)] = depth, size
            entered -= 1
        elif id(value) not in done:
            done[id(value)] = None
            entered += 1
            stack.append((value, True))
            stack.extend((part, False) for part in parts if _children(part))
        elif done[id(value)] is None:
            raise Bad("has a value that holds itself")
        # `entered` sees a deep value before all of it is walked, `depth` one met again deeper down.
        if max(entered, depth) > limits.depth:
            raise Bad(f"nests deeper than {limits.depth}")


def _kind(value) -> str:
    return value.kind if isinstance(value, Record) else f"a {type(value).__name__}"


def _short(text: str) -> str:
    return ascii(text[:160])[1:-1]


_OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


def _opcode(code: int) -> str:
    return _OPCODES.get(code) or f"0x{code:02x}"
