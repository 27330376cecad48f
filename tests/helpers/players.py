"""Both ends of playing in a browser: a server in a thread, a client made of a plain socket."""

import asyncio
import base64
import contextlib
import os
import re
import socket
import struct
import threading

import numpy as np

from diffjax.run import play, websocket


class Server:
    """`play.serving` in a thread of its own, and what it ended with."""

    def __init__(self, begin, advance, keys, fps=200.0):
        self.address, self.error, ready = None, None, threading.Event()

        def opened(address):
            self.address = address
            ready.set()

        async def run():
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            await play.serving(
                begin, advance, keys, title="<a> & b", fps=fps, port=0, opened=opened
            )

        def thread():
            try:
                asyncio.run(run())
            except asyncio.CancelledError:
                pass
            except BaseException as error:
                self.error = error
            ready.set()

        self._thread = threading.Thread(target=thread)
        self._thread.start()
        assert ready.wait(20) and self.address, self.error
        self.port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", self.address)[1])

    def stop(self):
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._task.cancel)
        self.join()

    def join(self):
        self._thread.join(20)
        assert not self._thread.is_alive()


class Client:
    """The other side of RFC 6455, byte by byte."""

    def __init__(self, port, **headers):
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), 20)
        self.key = base64.b64encode(os.urandom(16)).decode()
        host = f"127.0.0.1:{port}"
        self.headers = {
            "Host": host,
            "Origin": f"http://{host}",
            "Upgrade": "websocket",
            "Connection": "keep-alive, Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": self.key,
        } | {k.replace("_", "-"): v for k, v in headers.items()}

    def request(self, target="/socket", method="GET") -> str:
        """Sends the request; returns the status line and the headers."""
        lines = [f"{k}: {v}" for k, v in self.headers.items() if v is not None]
        self.socket.sendall("\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode())
        return self.head()

    def head(self) -> str:
        found = b""
        while not found.endswith(b"\r\n\r\n"):
            byte = self.socket.recv(1)
            if not byte:
                break
            found += byte
        return found.decode()

    def open(self, target="/socket"):
        answer = self.request(target)
        assert answer.startswith("HTTP/1.1 101 "), answer
        assert f"Sec-WebSocket-Accept: {websocket.accept(self.key)}\r\n" in answer
        return self

    def exactly(self, n):
        found = b""
        while len(found) < n:
            more = self.socket.recv(n - len(found))
            if not more:
                raise EOFError
            found += more
        return found

    def frame(self):
        """(opcode, payload) of the next frame."""
        first, size = self.exactly(2)
        assert first & 0x70 == 0 and first >> 7 and not size >> 7  # whole, and not masked
        if size == 126:
            (size,) = struct.unpack("!H", self.exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self.exactly(8))
        return first & 15, self.exactly(size)

    def picture(self):
        """The next frame of the game, uint8 [H, W, 3]."""
        opcode, payload = self.frame()
        assert opcode == websocket.BINARY
        height, width = struct.unpack("!HH", payload[:4])
        rgba = np.frombuffer(payload[4:], np.uint8).reshape(height, width, 4)
        assert (rgba[..., 3] == 255).all()
        return rgba[..., :3]

    def send(self, payload, opcode=websocket.TEXT, last=True, masked=True, bits=0, size=None):
        payload = payload.encode() if isinstance(payload, str) else payload
        head = bytes([last << 7 | bits << 4 | opcode])
        n, flag = len(payload), masked << 7
        if size is not None:
            head += size
        elif n < 126:
            head += bytes([flag | n])
        elif n < 1 << 16:
            head += bytes([flag | 126]) + struct.pack("!H", n)
        else:
            head += bytes([flag | 127]) + struct.pack("!Q", n)
        mask = os.urandom(4) if masked else b""
        body = bytes(b ^ mask[i % 4] for i, b in enumerate(payload)) if masked else payload
        self.socket.sendall(head + mask + body)

    def closing(self) -> tuple[int, str]:
        """Skips to the close frame; returns its code and reason. Nothing follows it."""
        while True:
            opcode, payload = self.frame()
            if opcode == websocket.CLOSE:
                break
        with contextlib.suppress(ConnectionError):
            assert self.socket.recv(1) == b""
        return struct.unpack("!H", payload[:2])[0], payload[2:].decode()

    def until(self, condition, frames=400):
        for _ in range(frames):
            if condition(self.picture()):
                return
        raise AssertionError("it never came")
