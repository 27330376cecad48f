"""`train.py --compile_for`: names, memory, the bound, and the report of a whole training step."""

import dataclasses
import importlib.util
import inspect
import math
import os
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import train
from diffjax import systems
from diffjax.errors import UserError
from diffjax.run import loop, update
from diffjax.run import mesh as meshes
from diffjax.run.pods import chips, costs, report, roofline, step, topologies

here = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not here, reason="libtpu is not installed (extra tpu)")
# What `prepare` sets: as it was, after the test.
VARIABLES = ("JAX_PLATFORMS", "JAX_ENABLE_COMPILATION_CACHE")
VARIABLES += ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD")
VARIABLES += ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID", "TPU_MIN_LOG_LEVEL", "TPU_ACCELERATOR_TYPE")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


# ---- names ---------------------------------------------------------------------------------------


def test_names_are_read_and_written():
    pod = topologies.parse("v5p:4x4x8", 3)
    assert pod == topologies.Topology("v5p", (4, 4, 8), 3)
    assert (pod.name, pod.chips) == ("v5p:4x4x8", 384)
    assert topologies.parse("gpu").name == "gpu"


REFUSED = {
    "v5e": "as v5e:2x2",
    "v5e:2x2x2": "in 2 dimensions, as v5e:2x2",
    "v5p:4x4": "in 3 dimensions",
    "v5ee:2x2": "did you mean 'v5e'?",
    "v5litepod-256": "no such kind of machine",
    "v6:4x4": "did you mean 'v6e'?",
    "v5e:0x4": "as v5e:2x2",
    "v5e:16x32": "512 chips, and a slice of v5e has at most 256",
    "gpus": "did you mean 'gpu'?",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_names_are_one_line_and_status_2(name, capsys):
    assert train.main(["--compile_for", name]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and REFUSED[name] in err


def test_slices_are_of_tpus(capsys):
    for words in (["--compile_for", "cpu", "--num_slices", "2"], ["--num_slices", "2"]):
        assert train.main(words) == 2
        err = capsys.readouterr().err
        assert "--num_slices" in err and err.count("\n") == 1


def test_flags_of_a_run_are_refused(capsys):
    assert train.main(["--compile_for", "cpu", "--distributed", "auto"]) == 2
    assert "--distributed: of a run" in capsys.readouterr().err


def test_without_libtpu_the_extra_is_named(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else found(name, *a)
    )
    assert train.main(["--compile_for", "v5e:2x2"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "pip install 'diffjax[tpu]'" in err


def test_a_shape_that_hosts_do_not_make_gets_the_next_that_they_do():
    words = 'Topology layout "v5e:3x5" is not divisible by the chips_per_host_bounds "2x2x1"'
    said = topologies.refusal(words, topologies.parse("v5e:3x5"))
    assert "did you mean 'v5e:4x6'?" in said
    assert "libtpu refuses" in topologies.refusal("INTERNAL: else", topologies.parse("v5e:3x5"))


def test_every_kind_has_a_row():
    assert set(topologies.SHAPES) == set(chips.TPUS)
    for kind, (rank, _, example) in topologies.SHAPES.items():
        chip = chips.of_tpu(kind)
        assert topologies.parse(example).kind == kind
        assert chip.links == 2 * rank  # a torus: two neighbours along each dimension
        assert 0 < chip.usable < 1.01 * chip.memory and "tpu/docs" in chip.sources
    with pytest.raises(UserError, match="did you mean 'v5p'"):
        chips.of_tpu("v5q")
    assert chips.of_device("NVIDIA H200 141GB HBM3e").name == "H200 SXM"
    assert chips.of_device("cpu") is None


# ---- numbers -------------------------------------------------------------------------------------


def test_a_donated_state_counts_once():
    size = 1 << 16

    def add(state, batch):
        return state + batch.sum()

    shapes = jax.ShapeDtypeStruct((size,), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.float32)
    for donated in (False, True):
        compiled = jax.jit(add, donate_argnums=0 if donated else ()).lower(*shapes).compile()
        memory = costs.kinds(compiled.memory_analysis())
        assert memory["arguments"] == 4 * size + 4 * 8 and memory["outputs"] == 4 * size
        assert memory["aliased"] == 4 * size * donated
        rest = memory["temporaries"] + memory["program"]
        assert costs.together(memory) == 4 * 8 + rest + 4 * size * (1 if donated else 2)


def test_two_devices_of_a_chip_share_its_memory():
    analysis = SimpleNamespace(
        argument_size_in_bytes=10,
        output_size_in_bytes=7,
        alias_size_in_bytes=6,
        temp_size_in_bytes=5,
        generated_code_size_in_bytes=3,
    )
    assert costs.together(costs.kinds(analysis)) == 10 + 7 - 6 + 5 + 3
    assert costs.together(costs.kinds(analysis, 2)) == 2 * (10 + 7 - 6 + 5 + 3)


def test_what_a_device_holds(mesh_of):
    mesh = mesh_of(data=2, fsdp=4)
    place = lambda spec: NamedSharding(mesh, spec)
    tree = {
        "cut": jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=place(P("fsdp"))),
        "whole": jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=place(P())),
        "rows": jax.ShapeDtypeStruct((16, 3), jnp.uint8, sharding=place(P(("data", "fsdp")))),
    }
    assert step.a_device(tree) == 4 * 2 * 6 + 2 * 5 + 2 * 3


REFUSALS = {
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (2.50T) exceeds available HBM (15.75G).": int(2.5 * 2**40),
    "Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm.": int(20.5 * 2**30),
    "RESOURCE_EXHAUSTED: something else": None,
}


@pytest.mark.parametrize("words", REFUSALS, ids=["now", "before", "else"])
def test_a_refused_program_says_what_it_asks_for(words):
    assert costs.asked(words) == REFUSALS[words]


CHIP = chips.Chip(
    name="toy",
    flops=100.0,
    memory=1000,
    usable=None,
    bandwidth=10.0,
    links=4,
    link=5.0,
    dcn=2.0,
    devices=1,
    sources="",
)
WORK = {"needed": 800.0, "multiplied": 300.0, "moved": 50.0, "inside": 40.0, "across": 4.0}


@pytest.mark.parametrize(
    "changed, limit, least",
    [
        ({}, "memory", 5.0),
        ({"multiplied": 900.0}, "compute", 9.0),
        ({"inside": 200.0}, "links", 10.0),
        ({"across": 40.0}, "network", 20.0),
        ({"moved": None, "inside": None, "across": None}, "compute", 3.0),
    ],
)
def test_the_bound_is_the_longest_of_what_must_happen(changed, limit, least):
    bound = roofline.bound(CHIP, 2, **{**WORK, **changed})
    assert (bound.limit, bound.least) == (limit, least)
    assert math.isclose(bound.mfu, 800 / (least * 2 * 100))


def test_what_the_table_does_not_know_is_left_out():
    bound = roofline.bound(dataclasses.replace(CHIP, dcn=None), 2, **WORK)
    assert bound.seconds["network"] is None and bound.limit == "memory"
    nothing = roofline.bound(dataclasses.replace(CHIP, dcn=None), 2, **{**WORK, "across": 0.0})
    assert nothing.seconds["network"] == 0


# ---- whole steps ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(make_config):
    return make_config("mesh.fsdp=2")


@pytest.fixture(scope="module")
def program(config):
    return step.compile_step(systems.make(config), config, jax.devices())


def test_a_step_s_numbers(config, program):
    shapes = jax.eval_shape(systems.make(config).init, jax.random.key(0))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert program.parameters == numbers
    held = program.held
    assert held["averages"] == held["parameters"] < 4 * numbers  # one average; some of it is cut
    assert held["optimizer"] == 2 * held["parameters"] + 4  # Adam's two moments and its counter
    classes = 2 * 4 * 3 + 4 * 40  # where each begins, how many it has, and their order
    assert held["data"] == 40 * (8 * 8 * 3 + 4) + classes
    memory = costs.of(program, None).memory
    # The state, the data, and three numbers: the step, the first bad one, the progress.
    assert memory["arguments"] == sum(held.values()) + 3 * 4
    assert memory["aliased"] == sum(held.values()) - held["data"] + 2 * 4


def test_what_is_compiled_is_what_was_written(program):
    multiplied = 8 * costs.of(program, None).multiplied
    assert not program.count.unknown
    # Products of a single term are compiled to other instructions than products.
    assert 0.99 < multiplied / program.count.flops <= 1


def test_the_report_of_a_training_step(tiny_config, config, program, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(report, "compile_step", lambda *a: made.append(a) or program)
    words = ["--config.mesh.fsdp=2", "--compile_for", "cpu"]
    assert train.main([*tiny_config, *words]) == 0
    out = capsys.readouterr().out
    assert made[0][2] == jax.devices() and made[0][1].mesh.fsdp == 2
    assert f"step        {config.name}: batch 8, {program.parameters:,} parameters\n" in out
    assert f"FLOPs       {program.count.flops:.4g} a step" in out
    assert "all-reduce" in out and "8 x cpu (data 4 x fsdp 2" in out


def traced(config):
    return step.trace_step(systems.make(config), config, jax.devices())


def test_accumulation_multiplies_no_work(make_config):
    one, two = (traced(make_config("batch_size=16", f"accumulate={n}")) for n in (1, 2))
    assert one.count.flops == two.count.flops > 0 and not two.count.unknown


def test_no_data_are_needed(make_config, tiny_config, monkeypatch, capsys):
    classes = make_config("data.path=shapes:16x16x3:10")
    assert traced(classes).held["data"] == 16 * 16 * 3 + 4  # a picture a device, and its label
    made, said = step.without_data(make_config("data.path=", "data.image_size=16"))
    assert made.data.path == "shapes:16x16x3" and "16x16x3 without classes" in said
    made.data.balanced = False
    assert traced(made).held["data"] == 16 * 16 * 3
    assert step.without_data(classes) == (classes, "")
    assert train.main([*tiny_config, "--config.data.path=shapes:16x", "--compile_for", "cpu"]) == 2
    assert "write shapes:HEIGHTxWIDTHxCHANNELS" in capsys.readouterr().err


def test_the_loop_runs_what_is_compiled(config, monkeypatch):
    """Both ask `update.jitted_step`."""
    asked = []
    made = update.jitted_step
    monkeypatch.setattr(update, "jitted_step", lambda *a: asked.append(a[1]) or made(*a))
    traced(config)
    assert asked == [config]
    assert "update.jitted_step(" in inspect.getsource(loop.train)


def test_a_step_without_room_is_status_1_and_one_line(config, program, monkeypatch, capsys):
    monkeypatch.setattr(report, "compile_step", lambda *a: program)
    monkeypatch.setattr(report, "cost_of", lambda program, _: costs.of(program, None, 1000))
    assert report.report(None, config, topologies.parse("cpu")) == 1
    out, err = capsys.readouterr()
    assert err.startswith("does not fit: the step needs ") and err.count("\n") == 1
    assert "does not fit" in out


def test_a_refused_step_is_status_1_too(config, program, monkeypatch, capsys):
    words = "RESOURCE_EXHAUSTED: ... temporaries (20.00G) exceeds available HBM (15.75G)"
    held = {"parameters": 3 << 30}
    refused = dataclasses.replace(program, compiled=None, refused=words, held=held)
    monkeypatch.setattr(report, "compile_step", lambda *a: refused)
    monkeypatch.setattr(topologies, "devices", lambda topology: [])
    assert report.report(None, config, topologies.parse("v5e:2x4")) == 1
    out, err = capsys.readouterr()
    assert "3.00 GiB" in out and "asks for 20.00 GiB" in out
    assert "needs 20.00 GiB of the 15.75 GiB that a TPU v5e has" in err and err.count("\n") == 1


def test_no_text_is_said(config, program, capfd):
    mute = SimpleNamespace(
        memory_analysis=program.compiled.memory_analysis,
        cost_analysis=program.compiled.cost_analysis,
        as_text=lambda: os.write(2, b"a stack trace") / 0,
    )
    silent = dataclasses.replace(program, compiled=mute)
    cost = costs.of(silent, CHIP)
    text = "\n".join(report.lines(config, topologies.parse("cpu"), silent, cost))
    assert not capfd.readouterr().err
    assert "exchanges   unavailable" in text and "compiled: unavailable, no text" in text
    assert re.search(r"links +unavailable", text) and "loose" in text
    assert cost.moved == cost.memory["arguments"] + cost.memory["outputs"]


def test_what_has_no_single_step_is_told(root, capsys):
    config = str(root / "configs" / "diamond_tiny.py")
    assert train.main(["--config", config, "--compile_for", "cpu"]) == 2
    assert "several programs" in capsys.readouterr().err


# ---- with libtpu ---------------------------------------------------------------------------------


@needs_libtpu
def test_libtpu_s_refusals_are_one_line(capsys):
    assert train.main(["--compile_for", "v5e:3x5"]) == 2
    assert "did you mean 'v5e:4x6'?" in capsys.readouterr().err


@needs_libtpu
def test_meshes_of_slices_and_of_parts_of_an_axis():
    made = topologies.parse("v5e:4x4", 3)
    topologies.prepare(made)
    mesh = meshes.make_mesh({"data": -1, "fsdp": 8}, topologies.devices(made))
    assert dict(mesh.shape) == {"data": 6, "fsdp": 8, "tensor": 1, "context": 1}
    slices = [{device.slice_index for device in row.flat} for row in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}, {2}, {2}]
    with pytest.raises(UserError, match="does not divide over 3 slices"):
        meshes.make_mesh({"data": 1, "fsdp": -1}, topologies.devices(made))
    # 8 is no product of whole sides of 4x4x4; the cores of a v4 are devices of their own.
    for name, count in (("v5p:4x4x4", 64), ("v4:2x2x1", 8)):
        devices = topologies.devices(topologies.parse(name))
        assert meshes.make_mesh({"data": -1, "fsdp": 8}, devices).size == count


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 2])
def test_a_tpu_s_report(tiny_config, slices, capsys):
    words = ["--compile_for", "v5e:2x2", "--num_slices", str(slices), "--config.batch_size=8"]
    assert train.main([*tiny_config, *words]) == 0
    out = capsys.readouterr().out
    assert f"{4 * slices} chips: {4 * slices} x TPU v5 lite" in out and "of 15.75 GiB" in out
    (times,) = re.findall(r"loops by their length: ([\d.]+) times as many", out)
    assert 0.97 < float(times) < 1.01  # products of a single term become other instructions
    assert (", slices" in out) == (slices > 1)
    assert "steps an hour" in out
