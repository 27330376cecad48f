"""What is read from compiled programs: exchanges, loops, work; against closed forms."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.run.pods import collectives, flops, hlo, work

LENGTH, ROWS, WIDTH = 7, 16, 64


def placed(mesh, spec, *shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))


@pytest.fixture(scope="module")
def product(mesh_of):
    """The text of a chain of products whose contracted dimension is cut over eight devices."""
    mesh = mesh_of(tensor=8)

    def chain(w, x):
        def layer(c, w):
            whole = NamedSharding(mesh, P())
            return jax.lax.with_sharding_constraint(jnp.tanh(c @ w), whole), None

        return jax.lax.scan(layer, x, w)[0]

    w, x = placed(mesh, P(None, "tensor"), LENGTH, WIDTH, WIDTH), placed(mesh, P(), ROWS, WIDTH)
    return jax.jit(chain).lower(w, x).compile().as_text()


def without_notes(text: str) -> str:
    """The text as a compiler prints it that does not say how long loops are."""
    bare = re.sub(r'"known_trip_count":\{"n":"\d+"\},?', "", text)
    assert bare != text
    return bare


@pytest.mark.parametrize("notes", [True, False], ids=["noted", "counted"])
def test_an_all_reduce_in_a_scan_counts_as_often_as_it_runs(product, notes):
    module = hlo.parse(product if notes else without_notes(product))
    (one,) = collectives.find(module, 8)
    assert (one.kind, one.group, one.times, one.known) == ("all-reduce", 8, LENGTH, True)
    assert one.times * one.bytes == 4 * ROWS * WIDTH * LENGTH
    assert one.sent == 2 * 7 / 8 * 4 * ROWS * WIDTH * LENGTH


def test_products_of_one_device_are_counted_in_the_text(product):
    assert work.multiplied(hlo.parse(product)) == 2 * ROWS * WIDTH * WIDTH * LENGTH / 8


def test_gathered_weights(mesh_of):
    mesh = mesh_of(data=2, fsdp=4)
    cut = P(("data", "fsdp"))

    def chain(w, x):
        def layer(c, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P()))
            return jax.lax.with_sharding_constraint(c @ w, NamedSharding(mesh, cut)), None

        return jax.lax.scan(layer, x, w)[0]

    w = placed(mesh, P(None, "fsdp"), LENGTH, WIDTH, WIDTH)
    text = jax.jit(chain).lower(w, placed(mesh, cut, ROWS, WIDTH)).compile().as_text()
    found = collectives.find(hlo.parse(text), 8)
    assert {one.kind for one in found} == {"all-gather"} and {one.group for one in found} == {4}
    # In each turn or all at once: the bytes are the same.
    whole = 4 * WIDTH * WIDTH * LENGTH
    assert sum(one.times * one.bytes for one in found) == whole
    assert sum(one.sent for one in found) == 3 / 4 * whole


def test_loops_in_loops_multiply():
    def inner(c, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), c, None, 5)[0], None

    outer = lambda w, x: jax.lax.scan(inner, x, w)[0]
    shapes = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32), jax.ShapeDtypeStruct((4, 8), jnp.float32)
    text = jax.jit(outer).lower(*shapes).compile().as_text()
    for printed in (text, without_notes(text)):
        assert work.multiplied(hlo.parse(printed)) == 3 * 5 * 2 * 4 * 8 * 8


def test_compiled_convolutions_equal_the_traced_ones():
    def loss(k, x):
        y = jax.lax.conv_general_dilated(
            x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(jnp.tanh(y) ** 2)

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 3, 4, 8), (2, 9, 9, 4))]
    step = jax.grad(loss, (0, 1))
    text = jax.jit(step).lower(*shapes).compile().as_text()
    assert work.multiplied(hlo.parse(text)) == flops.count(step, *shapes).flops


GROUPS = {
    "{{0,1},{2,3}}": [[0, 1], [2, 3]],
    "[2,2]<=[4]": [[0, 1], [2, 3]],
    "[2,2]<=[2,2]T(1,0)": [[0, 2], [1, 3]],
    "mesh['a'=2,'b'=2] {'a'}": [[0, 2], [1, 3]],
    "mesh['a'=2,'b'=2] {'b'}": [[0, 1], [2, 3]],
    "mesh['a'=4] {'a'}": [[0, 1, 2, 3]],
    "mesh['a'=4] {'a':(1)2}": [[0, 2], [1, 3]],
    "mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}": [[0, 2], [1, 3]],
    "mesh['a'=4] {'a':(2)2}": [[0, 1], [2, 3]],
    "{}": [[0, 1, 2, 3]],
}


@pytest.mark.parametrize("text", GROUPS)
def test_groups_in_every_spelling(text):
    assert collectives.groups(text, 4) == GROUPS[text]


# As TPUs print them, shortened: a gather spread over a start, a fusion and an end; an all-reduce of
# which a slice is kept; what hosts send between slices; a loop that says nothing of its length.
TPU = Path(__file__).with_name("tpu_step.txt").read_text()


def test_a_tpu_s_exchanges():
    module = hlo.parse(TPU)
    found = {(one.kind, one.between): one for one in collectives.find(module, 4, slices=2)}
    assert len(found) == 3 and all(one.times == 10 and one.known for one in found.values())
    gather = found["all-gather", False]  # once, though its start and its end print it
    assert (gather.group, gather.bytes, gather.sent) == (2, 32, 10 * 16)
    scatter = found["reduce-scatter", False]
    assert (scatter.group, scatter.bytes) == (4, 4 * 64 * 32)
    assert scatter.sent == 10 * 3 / 4 * 4 * 64 * 32
    hosts = found["all-reduce", True]
    assert (hosts.group, hosts.bytes, hosts.sent) == (2, 4 * 16 * 32, 10 * 4 * 16 * 32)


def test_memory_traffic_is_of_what_is_sliced_and_of_the_large_memory_alone():
    # In each turn: a row of the stack, 4 * 64 * 32, and its number; the gathered part, 16 bytes,
    # twice; the send. All else lies in the fast memory (S(1)) or is named only. Once: the counter.
    sent = 4 * 16 * 32 + 4
    turn = 4 * 64 * 32 + 4 + 16 + 16 + sent
    assert work.moved(hlo.parse(TPU)) == 10 * turn + 8


def test_a_loop_whose_length_nobody_says_counts_once_and_is_told():
    module = hlo.parse(TPU.replace("direction=LT", "direction=NE"))
    assert [(one.times, one.known) for one in collectives.find(module, 4, 2)] == [(1, False)] * 3


def test_traffic_by_hand():
    text = """HloModule m

ENTRY %main (a: f32[100], b: bf16[50,10]) -> f32[100] {
  %a = f32[100]{0} parameter(0)
  %b = bf16[50,10]{1,0} parameter(1)
  %i = s32[] constant(0)
  %near = bf16[50,10]{1,0:T(8,128)S(1)} copy(%b)
  %row = bf16[5,10]{1,0} dynamic-slice(%b, %i, %i), dynamic_slice_sizes={5,10}
  %new = bf16[50,10]{1,0} dynamic-update-slice(%b, %row, %i, %i)
  %t = (f32[100]{0}, bf16[50,10]{1,0}) tuple(%a, %new)
  %c = f32[100]{0} get-tuple-element(%t), index=0
  ROOT %d = f32[100]{0} add(%c, %a)
}
"""
    copy, piece, update, add = 2 * 500, 2 * 2 * 50, 2 * 2 * 50, 3 * 400
    assert work.moved(hlo.parse(text)) == copy + piece + update + add


def test_libraries_hide_what_they_multiply():
    call = '  ROOT %g = f32[4,4]{1,0} custom-call(%a, %a), custom_call_target="__cublas$gemm"\n'
    text = "HloModule m\n\nENTRY %main (a: f32[4,4]) -> f32[4,4] {\n"
    text += "  %a = f32[4,4]{1,0} parameter(0)\n" + call + "}\n"
    assert work.multiplied(hlo.parse(text)) is None


def test_a_text_without_an_entry_is_no_program():
    with pytest.raises(ValueError, match="entry"):
        hlo.parse("HloModule m\n")
