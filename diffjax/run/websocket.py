"""WebSockets for one page on this machine: RFC 6455 on asyncio streams, the server's side.

It takes little and says so early: a request of another origin, a frame that is too long, not
masked, or not as the protocol has it ends the connection before anything is stored of it.
"""

import asyncio
import base64
import binascii
import hashlib
import struct
from typing import NamedTuple
from urllib.parse import urlsplit

MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MAX_REQUEST = 8192  # bytes, of a request with its headers
LOCAL = ("127.0.0.1", "localhost")


class Refused(Exception):
    """A request that is answered with a status and not with a connection."""

    def __init__(self, status: str):
        super().__init__(status)
        self.status = status


class Closed(Exception):
    """The connection is over; `code` is the reason, as in section 7.4.1."""

    def __init__(self, code: int, reason: str = ""):
        super().__init__(f"{code} {reason}")
        self.code, self.reason = code, reason


class Request(NamedTuple):
    """The first line and the headers, their names in small letters."""

    method: str
    target: str
    headers: dict[str, str]


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Reads a request without a body.

    Args:
      reader: its limit has to be `MAX_REQUEST`.

    Raises:
      Refused: too long, or no request of HTTP/1.1.
      asyncio.IncompleteReadError: the other side left before its end.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise Refused("431 Request Header Fields Too Large") from None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    words = first.split(" ")
    if len(words) != 3 or words[2] != "HTTP/1.1":
        raise Refused("400 Bad Request")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        # A name with a space before the colon, or twice, may be read in two ways.
        if not colon or not name or name.strip() != name or name in headers:
            raise Refused("400 Bad Request")
        headers[name] = value.strip()
    return Request(words[0], words[1], headers)


def check_host(request: Request) -> str:
    """Returns the host that was asked for, with its port.

    Raises:
      Refused: it is not this machine, as where a foreign name was made to point here.
    """
    host = request.headers.get("host", "")
    if _hostname(host) not in LOCAL:
        raise Refused("421 Misdirected Request")
    return host


def _hostname(host: str) -> str | None:
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None


def handshake(request: Request) -> bytes:
    """Returns the answer that opens a connection (section 4.2).

    Raises:
      Refused: it is not asked for properly, or by a page that is not ours.
    """
    headers, host = request.headers, check_host(request)
    if headers.get("origin", "").lower() != f"http://{host}".lower():
        raise Refused("403 Forbidden")
    if headers.get("upgrade", "").lower() != "websocket":
        raise Refused("426 Upgrade Required")
    if "upgrade" not in [w.strip().lower() for w in headers.get("connection", "").split(",")]:
        raise Refused("400 Bad Request")
    if headers.get("sec-websocket-version") != "13":
        raise Refused("426 Upgrade Required")
    key = headers.get("sec-websocket-key", "")
    try:
        good = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        good = False
    if not good:
        raise Refused("400 Bad Request")
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept(key)}\r\n\r\n"
    ).encode()


def accept(key: str) -> str:
    """Returns Sec-WebSocket-Accept for a Sec-WebSocket-Key (section 4.2.2)."""
    return base64.b64encode(hashlib.sha1((key + MAGIC).encode()).digest()).decode()


def frame(opcode: int, payload: bytes) -> bytes:
    """Returns one whole message as a frame; a server's frames are not masked (section 5.2)."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 127, size)
    return head + payload


async def read_frame(reader: asyncio.StreamReader, room: int) -> tuple[bool, int, bytes]:
    """Reads a client's frame: (whether it is the message's last, opcode, payload).

    Args:
      reader: of the connection.
      room: bytes that the payload may take.

    Raises:
      Closed: 1002 for what the protocol forbids, 1009 for a payload that is too long. Both are
        known from the first bytes, before the payload is read.
      asyncio.IncompleteReadError: the other side left.
    """
    first, second = await reader.readexactly(2)
    last, opcode, masked, size = first >> 7 == 1, first & 15, second >> 7 == 1, second & 127
    if first & 0x70:
        raise Closed(1002, "reserved bits")
    if opcode not in (0, TEXT, BINARY, CLOSE, PING, PONG):
        raise Closed(1002, "unknown opcode")
    if not masked:
        raise Closed(1002, "not masked")
    if opcode >= CLOSE and (size > 125 or not last):
        raise Closed(1002, "a control frame in parts, or too long")
    if size > 125:
        width, least = (2, 126) if size == 126 else (8, 1 << 16)
        size = int.from_bytes(await reader.readexactly(width), "big")
        if size < least:
            raise Closed(1002, "a length that is longer than it need be")
    if size > room and opcode < CLOSE:
        raise Closed(1009, "too long")
    mask = await reader.readexactly(4)
    payload = await reader.readexactly(size)
    return last, opcode, bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


class Socket:
    """An open connection.

    Args:
      reader, writer: of the connection, after the handshake.
      limit: bytes of a message that is received. Keep it small: unmasking is done in Python.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int = 256
    ):
        self._reader, self._writer, self._limit = reader, writer, limit
        self.heard = asyncio.get_running_loop().time()  # when the other side last sent anything

    async def receive(self) -> str | bytes:
        """Returns the next message; answers pings in between.

        Raises:
          Closed: by the other side (1005 where it gave no reason, 1006 where it just left), or
            because of what it sent. `close` is still to be called.
        """
        parts, kind = b"", None
        while True:
            try:
                last, opcode, payload = await read_frame(self._reader, self._limit - len(parts))
            except (asyncio.IncompleteReadError, ConnectionError):
                raise Closed(1006) from None
            self.heard = asyncio.get_running_loop().time()
            if opcode == PING:
                await self._send(PONG, payload)
            elif opcode == CLOSE:
                raise _goodbye(payload)
            elif opcode != PONG:
                if (opcode == 0) != (kind is not None):
                    raise Closed(1002, "a continuation of nothing, or none where one was due")
                kind, parts = kind or opcode, parts + payload
                if last and kind == TEXT:
                    return _text(parts)
                if last:
                    return parts

    async def send(self, message: str | bytes) -> None:
        """Sends a message and waits until there is room for more; raises `Closed`."""
        if isinstance(message, str):
            await self._send(TEXT, message.encode())
        else:
            await self._send(BINARY, message)

    async def ping(self) -> None:
        """Asks for a sign of life, see `heard`; raises `Closed`."""
        await self._send(PING, b"")

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Says why, if it can still be heard, and hangs up."""
        if code in (1005, 1006):  # never sent (section 7.4.1)
            code = 1000
        try:
            said = struct.pack("!H", code) + reason.encode()[:100]
            async with asyncio.timeout(2):
                await self._send(CLOSE, said)
        except (Closed, TimeoutError):
            pass

    async def _send(self, opcode: int, payload: bytes) -> None:
        try:
            self._writer.write(frame(opcode, payload))
            await self._writer.drain()
        except (ConnectionError, RuntimeError):
            raise Closed(1006) from None


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise Closed(1007, "text that is not UTF-8") from None


def _goodbye(payload: bytes) -> Closed:
    if not payload:
        return Closed(1005)
    if len(payload) == 1:
        return Closed(1002, "half a code")
    (code,) = struct.unpack("!H", payload[:2])
    if not (1000 <= code <= 1003 or 1007 <= code <= 1011 or 3000 <= code <= 4999):
        return Closed(1002, "no such code")
    return Closed(code, _text(payload[2:]))
