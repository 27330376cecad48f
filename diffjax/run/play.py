"""Playing by hand: one page with a canvas, at an address that only this machine can reach.

Frames go to the page through a WebSocket (`websocket.py`), actions come back; nothing but the
standard library serves it, and the page loads nothing from elsewhere.
"""

import asyncio
import concurrent.futures
import contextlib
import html
import json
import secrets
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffjax.errors import UserError
from diffjax.run import websocket
from diffjax.run.system import System
from diffjax.run.websocket import MAX_REQUEST, Closed, Refused, Socket

PAGE = Path(__file__).with_name("play.html")
ADDRESS = "127.0.0.1"
CONNECTIONS = 16  # at once, before they have said what they want
PATIENCE = 5.0  # seconds, for a request, or for a frame to leave
TURN = 2.0  # seconds to wait for another player to leave
SILENCE = 30.0  # seconds without a sign of life
MAX_SIDE = 4096


def checked(system: System) -> Callable:
    """Returns `system.play`; raises `UserError` where there is nothing to play."""
    if system.play is None:
        raise UserError("--play: this run makes no worlds that could be played")
    return system.play


def serve(
    start: Callable[[], tuple[Any, np.ndarray]],
    step: Callable[[Any, int], tuple[Any, np.ndarray]],
    keys: dict[str, int],
    *,
    title: str = "diffjax",
    fps: float = 15.0,
    port: int = 8000,
    seconds: float | None = None,
    opened: Callable[[str], None] = print,
) -> None:
    """Lets one person at a time play in a browser, until Ctrl-C.

    Args:
      start: () -> (state, frame), the beginning; it is called for every player, and when R is
        pressed. A frame is uint8 [H, W, 3].
      step: (state, action) -> (state, frame), what one step does.
      keys: {"": 0, "ArrowLeft": 2, "ArrowLeft+Space": 5}: the action while such keys are held, by
        the names that browsers give them (KeyboardEvent.code). Of several the one with the most
        keys counts; "" is no key, action 0 unless it says otherwise.
      title: shown above the picture.
      fps: steps a second, or as many as `step` can do.
      port: 0 takes any that is free.
      seconds: after which to stop; None for never.
      opened: called with the address once it can be opened.

    Raises:
      UserError: a port that is taken, keys or frames other than these.
      Exception: whatever `start` or `step` raise.
    """

    async def run():
        timer = contextlib.nullcontext() if seconds is None else asyncio.timeout(seconds)
        with contextlib.suppress(TimeoutError):
            async with timer:
                await serving(start, step, keys, title=title, fps=fps, port=port, opened=opened)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(run())


async def serving(start, step, keys, *, title, fps, port, opened) -> None:
    """`serve` as a coroutine, until it is cancelled."""
    if not 0 < fps <= 1000:
        raise UserError(f"play: fps {fps}, above 0 and up to 1000 is wanted")
    game = _Game(start, step, _checked_keys(keys), str(title), float(fps))
    try:
        server = await asyncio.start_server(game.connected, ADDRESS, port, limit=MAX_REQUEST)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"play: port {port} cannot be used ({reason}): give another") from None
    try:
        opened(f"http://{ADDRESS}:{server.sockets[0].getsockname()[1]}/")
        await game.failed.wait()
        raise game.error
    finally:
        server.close()
        game.leave()


def _checked_keys(keys: dict[str, int]) -> dict[str, int]:
    for name, action in keys.items():
        good = isinstance(name, str) and isinstance(action, int | np.integer) and action >= 0
        if not good or isinstance(action, bool):
            raise UserError(f"play: key {name!r} has action {action!r}, a number from 0 is wanted")
    return {"": 0} | {name: int(action) for name, action in keys.items()}


class _Game:
    """What all connections share: the game, whether somebody plays, and why it had to stop."""

    def __init__(self, start, step, keys: dict[str, int], title: str, fps: float):
        self.start, self.step, self.keys, self.title, self.fps = start, step, keys, title, fps
        self.failed, self.error = asyncio.Event(), None
        self._seat, self._tasks = asyncio.Lock(), set()
        # One thread: a step may take long, and pings are to be answered meanwhile.
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if len(self._tasks) >= CONNECTIONS:
            writer.transport.abort()
            return
        self._tasks.add(task)
        try:
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass  # it left, or said nothing
        except asyncio.CancelledError:
            pass  # we leave
        finally:
            self._tasks.discard(task)
            writer.close()
            # What the other side does not take is not kept for it.
            asyncio.get_running_loop().call_later(PATIENCE, writer.transport.abort)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                request = await websocket.read_request(reader)
            host = websocket.check_host(request)
            if request.method != "GET":
                raise Refused("405 Method Not Allowed")
            if request.target == "/socket":
                writer.write(websocket.handshake(request))
                await self._welcome(Socket(reader, writer))
                return
            if request.target != "/":
                raise Refused("404 Not Found")
            writer.write(self._page(host))
        except Refused as refused:
            writer.write(_response(refused.status, refused.status.encode(), "text/plain"))
        async with asyncio.timeout(PATIENCE):
            await writer.drain()

    def _page(self, host: str) -> bytes:
        nonce = secrets.token_urlsafe(16)
        # In a script "<" could end it.
        keys = json.dumps(self.keys).replace("<", "\\u003c")
        words = {"NONCE": nonce, "TITLE": html.escape(self.title), "KEYS": keys}
        text = PAGE.read_text(encoding="utf-8")
        for name, value in words.items():
            text = text.replace(f"@{name}@", value)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            f"connect-src ws://{host}; base-uri 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
        return _response("200 OK", text.encode(), "text/html; charset=utf-8", headers)

    async def _welcome(self, socket: Socket) -> None:
        try:
            # A page that is loaded again comes before the old one has quite left.
            async with asyncio.timeout(TURN):
                await self._seat.acquire()
        except TimeoutError:
            await socket.close(1013, "somebody plays already")
            return
        try:
            await self._play(socket)
        except Closed as closed:
            await socket.close(closed.code, closed.reason)
        except asyncio.CancelledError:
            await socket.close(1001, "the server stops")
            raise
        except Exception as error:  # of the game: it is what `serve` raises
            self.error = error
            self.failed.set()
            await socket.close(1011, "the game failed")
        finally:
            self._seat.release()

    async def _play(self, socket: Socket) -> None:
        """Steps at the game's pace while another task listens for actions."""
        wish = {"action": self.keys[""], "restart": False}
        listener = asyncio.create_task(self._listen(socket, wish))
        try:
            clock = asyncio.get_running_loop()
            state, frame = await self._run(self.start)
            due, pinged = clock.time(), clock.time()
            while not listener.done():
                await _show(socket, frame)
                now = clock.time()
                if now - socket.heard > SILENCE:
                    raise Closed(1006)
                if now - max(socket.heard, pinged) > SILENCE / 3:
                    pinged = now
                    await socket.ping()
                # A step that took too long is not made up for by a faster one.
                due = max(due + 1 / self.fps, now)
                await asyncio.wait([listener], timeout=due - now)
                if wish["restart"]:
                    wish["restart"] = False
                    state, frame = await self._run(self.start)
                else:
                    state, frame = await self._run(self.step, state, wish["action"])
            await listener  # raises why it ended
        finally:
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError, Closed):
                await listener

    async def _listen(self, socket: Socket, wish: dict) -> None:
        actions = {str(action): action for action in self.keys.values()}
        while True:
            message = await socket.receive()
            if message == "restart":
                wish["restart"] = True
            elif message in actions:
                wish["action"] = actions[message]
            else:
                raise Closed(1008, "no such action")

    async def _run(self, function, *words):
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *words)

    def leave(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)


async def _show(socket: Socket, frame: np.ndarray) -> None:
    """Sends a frame: height and width as two bytes each, then RGBA, as a canvas takes it."""
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise UserError(f"play: a frame is uint8 [H, W, 3], not {frame.dtype} {frame.shape}")
    height, width, _ = frame.shape
    if not 0 < min(height, width) <= max(height, width) <= MAX_SIDE:
        raise UserError(f"play: a frame of {height} x {width}, sides of 1 to {MAX_SIDE} are wanted")
    opaque = np.full((height, width, 1), 255, np.uint8)
    pixels = np.concatenate([frame, opaque], -1).tobytes()
    try:
        async with asyncio.timeout(PATIENCE):
            await socket.send(struct.pack("!HH", height, width) + pixels)
    except TimeoutError:  # it takes nothing any more
        raise Closed(1006) from None


def _response(status: str, body: bytes, kind: str, headers: dict[str, str] | None = None) -> bytes:
    lines = {
        "Content-Type": kind,
        "Content-Length": len(body),
        "Connection": "close",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body
