"""Playing in a browser: a client made of a plain socket, which also misbehaves."""

import contextlib
import json
import re
import socket
import struct
import time

import numpy as np
import players
import pytest
from players import Client

from diffjax.errors import UserError
from diffjax.run import play, websocket

KEYS = {"": 0, "ArrowLeft": 1, "ArrowRight+Space": 2}


def start():
    return 0, np.zeros((2, 3, 3), np.uint8)


def step(state, action):
    """Frames that tell the step and the action."""
    frame = np.zeros((2, 3, 3), np.uint8)
    frame[..., 0], frame[..., 1] = (state + 1) % 256, action
    return state + 1, frame


def Server(begin=start, advance=step, keys=None):
    return players.Server(begin, advance, keys or KEYS)


@pytest.fixture
def server():
    made = Server()
    yield made
    made.stop()
    assert made.error is None


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(play, "PATIENCE", 0.3)
    monkeypatch.setattr(play, "TURN", 0.3)


# ---- playing ---------------------------------------------------------------------------------


def test_actions_go_there_and_frames_come_back(server):
    client = Client(server.port).open()
    first, second = client.picture(), client.picture()
    assert first.shape == (2, 3, 3) and not first.any()
    assert second[0, 0].tolist() == [1, 0, 0]
    for action in (2, 1, 0):
        client.send(str(action))
        client.until(lambda picture, action=action: picture[0, 0, 1] == action)
    assert client.picture()[0, 0, 0] > 1
    client.send("restart")
    client.until(lambda picture: not picture.any())
    client.send("", websocket.CLOSE)
    assert client.closing() == (1000, "")


def test_the_page_stands_alone(server):
    client = Client(server.port)
    head = client.request("/")
    assert head.startswith("HTTP/1.1 200 OK")
    page = client.socket.makefile("rb").read().decode()
    assert len(page.encode()) == int(re.search(r"Content-Length: (\d+)", head)[1])
    nonces = set(re.findall(r'nonce="([^"]+)"', page))
    (policy,) = re.findall(r"Content-Security-Policy: (.*)\r\n", head)
    assert len(nonces) == 1 and f"script-src 'nonce-{nonces.pop()}'" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"(src|href)=|@[A-Z]+@|https?://", page)  # loads nothing
    assert "&lt;a&gt; &amp; b" in page and "<a>" not in page
    assert json.loads(re.search(r"const KEYS = (.*);", page)[1]) == KEYS


def test_keys_cannot_leave_their_script():
    server = Server(keys={"</script><b>": 1})
    try:
        client = Client(server.port)
        client.request("/")
        page = client.socket.makefile("rb").read().decode()
        assert page.count("</script>") == 1
        assert json.loads(re.search(r"const KEYS = (.*);", page)[1]) == {"": 0, "</script><b>": 1}
    finally:
        server.stop()


def test_one_person_plays_at_a_time(server, quick):
    first = Client(server.port).open()
    first.picture()
    second = Client(server.port).open()
    assert second.closing() == (1013, "somebody plays already")
    first.picture()
    first.socket.close()  # and leaves without a word
    assert not Client(server.port).open().picture().any()


def test_messages_in_parts_and_pings(server):
    client = Client(server.port).open()
    client.send("rest", last=False)
    client.send(b"how are you", websocket.PING)
    client.send("art", opcode=0)
    while True:
        opcode, payload = client.frame()
        if opcode == websocket.PONG:
            break
    assert payload == b"how are you"
    client.until(lambda picture: not picture.any())


def test_silence_is_asked_about_and_then_ended(monkeypatch):
    monkeypatch.setattr(play, "SILENCE", 0.6)
    server = Server()
    try:
        client, pings = Client(server.port).open(), 0
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                opcode, _ = client.frame()
                pings += opcode == websocket.PING
                if opcode == websocket.CLOSE:
                    break
        assert pings >= 1
    finally:
        server.stop()
    assert server.error is None


def test_the_server_says_goodbye():
    server = Server()
    client = Client(server.port).open()
    client.picture()
    server.stop()
    assert client.closing() == (1001, "the server stops")


def test_it_ends_by_itself_when_told_to():
    seen, begin = [], time.monotonic()
    play.serve(start, step, KEYS, port=0, seconds=0.3, opened=seen.append)
    assert seen and time.monotonic() - begin < 10


# ---- somebody else's page, and other requests --------------------------------------------------


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Origin": "http://example.com"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Host": "example.com"}, 421),
        ({"Host": "127.0.0.1.example.com:80"}, 421),
        ({"Host": "a@127.0.0.1"}, 421),
        ({"Host": "127.0.0.1:port"}, 421),
        ({"Host": None}, 421),
        ({"Upgrade": "h2c"}, 426),
        ({"Upgrade": None}, 426),
        ({"Connection": "keep-alive"}, 400),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": None}, 400),
        ({"Sec-WebSocket-Key": "!" * 24}, 400),
    ],
)
def test_requests_that_are_refused(server, headers, status):
    client = Client(server.port)
    client.headers |= headers
    assert client.request().startswith(f"HTTP/1.1 {status} ")
    assert Client(server.port).open().picture() is not None


def test_localhost_is_this_machine_too(server):
    host = f"localhost:{server.port}"
    Client(server.port, Host=host, Origin=f"http://{host}").open().picture()


@pytest.mark.parametrize(
    "target, method, status",
    [
        ("/x", "GET", 404),
        ("/../play.py", "GET", 404),
        ("/", "POST", 405),
        ("/socket", "POST", 405),
        ("http://127.0.0.1/", "GET", 404),
    ],
)
def test_other_pages_are_not_there(server, target, method, status):
    assert Client(server.port).request(target, method).startswith(f"HTTP/1.1 {status} ")


@pytest.mark.parametrize(
    "request_, status",
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"\xff\xfe\x00\r\n\r\n", 400),
        (b"GET /" + b"x" * 20_000, 431),
    ],
)
def test_requests_that_are_none(server, request_, status):
    client = Client(server.port)
    client.socket.sendall(request_)
    assert client.head().startswith(f"HTTP/1.1 {status} ")


def test_a_request_that_never_ends(quick, server):
    client = Client(server.port)
    client.socket.sendall(b"GET / HT")
    assert client.head() == ""  # hung up on
    Client(server.port).open().picture()


def test_it_listens_on_this_machine_alone(server):
    others = {i[4][0] for i in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in others - {"127.0.0.1", "127.0.1.1"}:
        with pytest.raises(OSError):
            socket.create_connection((address, server.port), 2)


# ---- frames that the protocol forbids -----------------------------------------------------------


def long_length(n, width=8):
    return bytes([0x80 | (127 if width == 8 else 126)]) + n.to_bytes(width, "big")


@pytest.mark.parametrize(
    "frame, code",
    [
        ({"payload": "1", "masked": False}, 1002),
        ({"payload": "1", "bits": 4}, 1002),
        ({"payload": "1", "bits": 1}, 1002),
        ({"payload": "1", "opcode": 3}, 1002),
        ({"payload": "1", "opcode": 15}, 1002),
        ({"payload": "1", "opcode": 0}, 1002),
        ({"payload": b"x" * 126, "opcode": websocket.PING}, 1002),
        ({"payload": b"x", "opcode": websocket.PING, "last": False}, 1002),
        ({"payload": b"1", "size": long_length(1)}, 1002),
        ({"payload": b"1", "size": long_length(1, 2)}, 1002),
        ({"payload": b"", "size": long_length(1 << 62)}, 1009),
        ({"payload": b"", "size": long_length((1 << 64) - 1)}, 1009),
        ({"payload": b"x" * 257}, 1009),
        ({"payload": "x" * 256}, 1008),
        ({"payload": b"\xff\xfe"}, 1007),
        ({"payload": b"1", "opcode": websocket.CLOSE}, 1002),
        ({"payload": struct.pack("!H", 1005), "opcode": websocket.CLOSE}, 1002),
        ({"payload": struct.pack("!H", 999), "opcode": websocket.CLOSE}, 1002),
        ({"payload": struct.pack("!H", 1000) + b"\xff", "opcode": websocket.CLOSE}, 1007),
        ({"payload": struct.pack("!H", 1000) + b"bye", "opcode": websocket.CLOSE}, 1000),
        ({"payload": struct.pack("!H", 4321), "opcode": websocket.CLOSE}, 4321),
        ({"payload": "7"}, 1008),
        ({"payload": "-1"}, 1008),
        ({"payload": "0" * 200}, 1008),
        ({"payload": b"0", "opcode": websocket.BINARY}, 1008),
        ({"payload": '{"action": 0}'}, 1008),
        ({"payload": ""}, 1008),
    ],
)
def test_bad_frames_end_the_connection(server, frame, code):
    client = Client(server.port).open()
    client.send(**frame)
    assert client.closing()[0] == code
    Client(server.port).open().picture()  # and nobody else's


def test_parts_that_are_too_long_together(server):
    client = Client(server.port).open()
    client.send("x" * 200, last=False)
    client.send("x" * 200, opcode=0)
    assert client.closing()[0] == 1009


def test_a_message_inside_another(server):
    client = Client(server.port).open()
    client.send("re", last=False)
    client.send("start")
    assert client.closing()[0] == 1002


def test_bytes_at_random(server):
    random = np.random.default_rng(0)
    for _ in range(30):
        client = Client(server.port).open()
        with contextlib.suppress(ConnectionError):
            client.socket.sendall(random.bytes(int(random.integers(1, 200))))
        client.socket.close()
    assert Client(server.port).open().picture().shape == (2, 3, 3)


def test_somebody_who_does_not_look(quick):
    big = np.zeros((1000, 1000, 3), np.uint8)
    server = Server(lambda: (0, big), lambda state, action: (state, big))
    try:
        Client(server.port).open()  # and never reads
        time.sleep(1.0)
        patient = Client(server.port).open()
        assert patient.picture().shape == (1000, 1000, 3)
    finally:
        server.stop()
    assert server.error is None


def test_a_crowd(quick, server):
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    time.sleep(1.0)  # none of them says a word
    assert Client(server.port).open().picture() is not None
    for each in idle:
        each.close()


# ---- mistakes of ours ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame, words",
    [
        (np.zeros((2, 2, 3)), "uint8"),
        (np.zeros((2, 2), np.uint8), "uint8"),
        (np.zeros((2, 0, 3), np.uint8), "sides of 1"),
        (np.zeros((1, 5000, 3), np.uint8), "sides of 1"),
    ],
)
def test_a_game_that_fails_ends_the_server(frame, words):
    server = Server(lambda: (0, frame))
    assert Client(server.port).open().closing() == (1011, "the game failed")
    server.join()
    assert isinstance(server.error, UserError) and words in str(server.error)


def test_a_step_s_own_error_is_what_serve_raises():
    def broken(state, action):
        raise UserError("the model has no such action")

    server = Server(advance=broken)
    client = Client(server.port).open()
    assert client.closing()[0] == 1011
    server.join()
    assert str(server.error) == "the model has no such action"


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be used"):
            play.serve(start, step, KEYS, port=port)
    with pytest.raises(UserError, match="port 70000 cannot be used"):
        play.serve(start, step, KEYS, port=70000)


@pytest.mark.parametrize("keys", [{"a": -1}, {"a": 1.0}, {3: 1}, {"a": True}, {"a": None}])
def test_bad_keys(keys):
    with pytest.raises(UserError, match="play: key"):
        play.serve(start, step, keys, port=0)


@pytest.mark.parametrize("fps", [0, -1, 1e9, float("nan")])
def test_bad_rates(fps):
    with pytest.raises(UserError, match="play: fps"):
        play.serve(start, step, KEYS, port=0, fps=fps)


def test_the_protocol_s_own_example():
    assert websocket.accept("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert websocket.frame(websocket.TEXT, b"Hello") == bytes.fromhex("810548656c6c6f")
    assert websocket.frame(websocket.BINARY, bytes(256))[:4] == bytes.fromhex("827e0100")
    assert websocket.frame(websocket.BINARY, bytes(1 << 16))[:10] == bytes.fromhex(
        "827f0000000000010000"
    )
