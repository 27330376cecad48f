"""`sample.py --play` in a real browser: frames come to its canvas, and its keys reach the world."""

import re
import subprocess
import sys

import browsers
import diamond_runs
import jax
import numpy as np
import pytest

from diffjax import systems
from diffjax.run import mesh, sampling
from diffjax.weights import trees

STEPS = 150  # more than are played while the test looks
RIGHT, ARROW, R = 2, 39, 82  # the action; keys by their numbers


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A run directory whose networks have weights at random: what is done then shows at once."""
    config = diamond_runs.config_of(root, learn="denoiser")
    keys = {"": 0, "ArrowRight": RIGHT}
    workdir = diamond_runs.blank(config, tmp_path_factory.mktemp("played") / "run", keys=keys)
    shapes = systems.load(workdir)[0].init(jax.random.key(0))
    random = np.random.default_rng(0)
    draw = lambda a: random.normal(0, 0.2, a.shape).astype(np.float32)
    weights = jax.tree.map(draw, dict(shapes))
    trees.save(weights, workdir / sampling.WEIGHTS)
    return workdir


@pytest.fixture(scope="module")
def expected(run):
    """expected(turn, action) -> the pictures of a beginning, and of one action again and again."""
    system, _ = systems.load(run)
    params = sampling.load_params(system, run, mesh.make_mesh(mesh.LOCAL))[0]

    def pictures(turn, action):
        opened = system.play(params, system.request, 0)
        for _ in range(turn):
            state, frame = opened["start"]()
        found = [frame]
        for _ in range(STEPS):
            state, frame = opened["step"](state, action)
            found.append(frame)
        return found

    return pictures


@pytest.fixture
def address(run, root):
    """The address that sample.py prints."""
    words = ["sample.py", "--workdir", str(run), "--play", "--port", "0", "--fps", "25"]
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", line), (line, process.stderr.read())
        yield line
        assert process.poll() is None, process.stderr.read()
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.mark.slow
@pytest.mark.skipif(not browsers.found(), reason="no chromium or chrome on PATH")
def test_a_browser_plays(address, expected, tmp_path):
    first, held, without, last = expected(1, 0), expected(2, RIGHT), expected(2, 0), expected(3, 0)
    assert all((a != b).any() for a, b in zip(held[1:20], without[1:20]))
    page = browsers.Page(browsers.found(), address, tmp_path)
    try:
        page.until('document.querySelector("canvas")?.height === 142')  # 8 pixels, 128, and a line
        follows(page, first, steps=3)
        page.key("keyDown", "ArrowRight", ARROW)
        press(page, "KeyR", R)
        follows(page, held, steps=10)
        page.key("keyUp", "ArrowRight", ARROW)
        press(page, "KeyR", R)
        follows(page, last, steps=10)
        page.until('/^[1-9].* frames a second$/.test(document.getElementById("status").innerText)')
    finally:
        page.close()


def press(page, code, number):
    page.key("keyDown", code, number)
    page.key("keyUp", code, number)


def follows(page, pictures, steps):
    """The canvas shows these pictures in their order, at least so many after the first it shows."""
    index = {picture.tobytes(): i for i, picture in reversed(list(enumerate(pictures)))}
    seen = []
    for _ in range(2000):
        place = index.get(page.canvas().tobytes())
        if place is None:
            assert not seen, f"another picture after {seen[-1]}"
            continue
        seen.append(place)
        if place - seen[0] >= steps:
            break
    assert seen and seen[-1] - seen[0] >= steps and seen == sorted(seen)
