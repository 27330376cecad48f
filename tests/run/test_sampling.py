"""Sample s depends on (seed, s) alone; and sample.py writes what it is asked for."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import sample
from diffjax import systems
from diffjax.run import sampling
from diffjax.weights import trees


@pytest.fixture(scope="module")
def make(trained, mesh_of):
    """make(num=, batch=, seed=, devices=, **request fields) -> outputs of the trained run."""
    system, _ = systems.load(trained)
    samplers, params = {}, {}

    def go(*, num, batch, seed=0, devices=1, **fields):
        request = dataclasses.replace(system.request, **fields)
        if devices not in params:
            params[devices] = sampling.load_params(system, trained, mesh_of(data=devices))[0]
        if (devices, request) not in samplers:
            samplers[devices, request] = sampling.sampler(system, request, mesh_of(data=devices))
        return sampling.collect(
            system,
            params[devices],
            request,
            num=num,
            seed=seed,
            batch=batch,
            mesh=mesh_of(data=devices),
            run=samplers[devices, request],
        )

    return go


@pytest.fixture(scope="module")
def sixteen(make):
    return make(num=16, batch=16)


@pytest.mark.parametrize("num, batch", [(16, 8), (5, 3), (3, 1)])
def test_sample_does_not_depend_on_its_batch(make, sixteen, num, batch):
    got = make(num=num, batch=batch)
    assert got["image"].shape == (num, 8, 8, 3) and got["image"].dtype == np.uint8
    for name in got:
        np.testing.assert_array_equal(got[name], sixteen[name][:num])
    assert got["image"].std() > 10  # pictures, not a constant


@pytest.mark.parametrize("num, batch", [(16, 16), (5, 2)])
def test_eight_devices_draw_the_same(make, sixteen, num, batch):
    got = make(num=num, batch=batch, devices=8)
    np.testing.assert_array_equal(got["label"], sixteen["label"][:num])
    # Rounding may tip a value over to the next of the 256 levels, nothing more.
    apart = np.abs(got["image"].astype(int) - sixteen["image"][:num])
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01


def test_stochastic_samplers_too(make):
    fields = {"sampler": "ddim", "eta": 1.0, "steps": 3}
    whole = make(num=6, batch=6, **fields)["image"]
    np.testing.assert_array_equal(make(num=6, batch=4, **fields)["image"], whole)
    calm = make(num=6, batch=6, **{**fields, "eta": 0.0})["image"]
    assert (whole != calm).mean() > 0.5  # the noise was there


def test_samples_differ_by_number_and_by_seed(make, sixteen):
    images = sixteen["image"]
    assert len({image.tobytes() for image in images}) == 16
    other = make(num=16, batch=16, seed=1)["image"]
    assert all((a != b).mean() > 0.5 for a, b in zip(images, other, strict=True))


def test_one_sample_by_hand(make, trained, sixteen):
    # The fifth, from its key alone.
    system, _ = systems.load(trained)
    params = trees.fit(
        trees.load(trained / "weights.safetensors"),
        jax.eval_shape(system.init, jax.random.key(0)),
        "",
    )
    key = jax.random.fold_in(jax.random.key(0), 5)
    label = np.array([5 % 3], np.int32)
    got = system.sample(params, key[None], label, system.request)
    np.testing.assert_array_equal(got["label"], label)
    apart = np.abs(np.asarray(got["image"][0], int) - sixteen["image"][5])
    assert apart.max() <= 1


def read(path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def draw(trained, tmp_path_factory):
    """draw(*flags, workdir=trained) -> the arrays that sample.py writes."""
    folder = tmp_path_factory.mktemp("samples")

    def go(*flags, workdir=trained):
        out = folder / "new" / "out.npz"
        argv = ["--workdir", str(workdir), "--num", "6", "--out", str(out), *flags]
        assert sample.main(argv) == 0
        assert [p.name for p in out.parent.iterdir()] == ["out.npz"]  # no temporary left
        return read(out)

    return go


@pytest.fixture(scope="module")
def six(draw):
    return draw()


def test_command_equals_the_library(six, make):
    for name, wanted in make(num=6, batch=6, devices=8).items():
        np.testing.assert_array_equal(six[name], wanted)


def test_condition_by_name_and_number(draw):
    assert draw("--cond", "blue, 0")["label"].tolist() == [2, 0, 2, 0, 2, 0]


def test_weights_alone_sample_the_same(draw, six, trained, tmp_path):
    bare = shutil.copytree(trained, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    alone = draw(workdir=bare)
    np.testing.assert_array_equal(alone["image"], six["image"])


def test_run_directory_needs_no_training_data(draw, six, trained, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    config = json.loads((moved / "config.json").read_text())
    config["data"]["path"] = str(tmp_path / "not_here.npz")
    (moved / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(draw(workdir=moved)["image"], six["image"])


def test_which_weights(draw, six, trained, read_state, mesh_of):
    assert (draw("--ema", "none")["image"] != six["image"]).any()
    assert (draw("--step", "3")["image"] != six["image"]).any()

    system, _ = systems.load(trained)
    for step, ema, part in (3, "", "ema/ema/"), (6, "none", "params/"), (-1, "ema", "ema/ema/"):
        params, said = sampling.load_params(system, trained, mesh_of(data=8), ema=ema, step=step)
        state = read_state(trained, step if step > 0 else 6)
        for name, value in trees.flatten(params).items():
            np.testing.assert_array_equal(value, state[part + name])
        assert f"step {step if step > 0 else 6}" in said


def test_pictures_and_folders(trained, six, tmp_path, capsys):
    argv = ["--workdir", str(trained), "--num", "6", "--out"]
    assert sample.main([*argv, str(tmp_path / "a" / "grid.png")]) == 0
    sheet = np.asarray(Image.open(tmp_path / "a" / "grid.png"))
    # Two of each of three classes: three rows of two, enlarged nine times, 72 + 9 pixels apart.
    assert sheet.shape[0] == 3 * 81 + 9
    first = sheet[9 : 9 + 72 : 9, -2 * 81 : -2 * 81 + 72 : 9]
    np.testing.assert_array_equal(first, six["image"][0])

    assert sample.main([*argv, str(tmp_path / "folder")]) == 0
    files = sorted((tmp_path / "folder").iterdir())
    assert [p.name for p in files] == [f"{i:06}.png" for i in range(6)]
    for file, image in zip(files, six["image"], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image)
    assert "6 pictures in" in capsys.readouterr().out


def test_sampling_leaves_a_running_training_alone(draw, six, trained, tmp_path):
    # A checkpoint that is being written, as another process sees it.
    busy = shutil.copytree(trained, tmp_path / "busy")
    part = busy / "checkpoints" / "8.orbax-checkpoint-tmp-1234567890"
    (part / "state").mkdir(parents=True)
    (part / "state" / "data").write_bytes(b"half")
    before = sorted(busy.rglob("*"))
    np.testing.assert_array_equal(draw(workdir=busy)["image"], six["image"])
    assert sorted(busy.rglob("*")) == before
