import collections
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.data.base import ArraySource
from diffjax.data.loader import InMemory, batches, permuted, positions
from diffjax.errors import UserError


def numbered(n: int, classes: int | None = None) -> ArraySource:
    """Images whose pixels are their index, labels n^2-ish: uneven, and some classes empty."""
    images = np.zeros((n, 1, 2, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.arange(n) % 256, np.arange(n) // 256
    if classes is None:
        return ArraySource(images)
    labels = (np.arange(n) ** 2 % (2 * classes - 1)) % classes
    labels[labels == 1] = 0
    return ArraySource(images, labels, tuple(map(str, range(classes))))


def index_of(batch: dict) -> list[int]:
    image = np.asarray(batch["image"]).astype(int)
    return (image[:, 0, 0, 0] + 256 * image[:, 0, 1, 0]).tolist()


def read(source, count: int, **options) -> list[list[int]]:
    options = {"seed": 3, "batch_size": 8, **options}
    return [index_of(b) for b in itertools.islice(batches(source, **options), count)]


@pytest.mark.parametrize("balanced", [False, True])
def test_resumes_at_every_batch(balanced):
    source = numbered(21, 4)
    whole = read(source, 7, balanced=balanced)
    for start in range(7):
        assert read(source, 7 - start, balanced=balanced, start=start) == whole[start:]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_a_batch(balanced, count):
    source = numbered(21, 4)
    whole = read(source, 5, balanced=balanced)
    parts = [
        read(source, 5, balanced=balanced, process_index=p, process_count=count)
        for p in range(count)
    ]
    assert [sum(rows, []) for rows in zip(*parts, strict=True)] == whole


def test_order_is_grains_and_every_epoch_is_whole():
    import grain

    source = numbered(21)
    found = sum(read(source, 8), [])
    expected = grain.MapDataset.range(21).seed(3).shuffle().repeat()
    assert found == [int(expected[i]) for i in range(64)]
    epochs = [found[21 * e : 21 * (e + 1)] for e in range(3)]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(21))
    assert found != sum(read(source, 8, seed=4), [])


def test_balanced_order_visits_classes_and_images_evenly():
    source = numbered(50, 5)
    present = sorted(set(source.labels.tolist()))
    assert len(present) < 5, "an empty class is part of the test"
    at = positions(source, seed=0, balanced=True)
    counts = np.bincount(source.labels, minlength=5)
    turns = 3 * max(counts)
    order = [at(i) for i in range(turns * len(present))]
    labels = source.labels[order].reshape(turns, len(present))
    assert all(sorted(turn) == present for turn in labels.tolist())
    assert len({tuple(turn) for turn in labels.tolist()}) > 1
    for k in present:
        images = [i for i in order if source.labels[i] == k][: 2 * counts[k]]
        assert set(collections.Counter(images[: counts[k]]).values()) == {1}
        assert set(collections.Counter(images).values()) == {2}
        if counts[k] > 5:
            assert images[: counts[k]] != images[counts[k] :], "each epoch has its own order"


def test_batches_hold_what_the_source_holds():
    source = numbered(21, 4)
    batch = next(batches(source, seed=0, batch_size=30))
    assert batch["image"].shape == (30, 1, 2, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["label"], source.labels[index_of(batch)])
    assert set(next(batches(numbered(3), seed=0, batch_size=2))) == {"image"}


def test_errors_of_the_source_come_through():
    class Broken:
        name, labels = "broken", None

        def __len__(self):
            return 4

        def __getitem__(self, i):
            raise UserError("broken: example 2 cannot be read")

    with pytest.raises(UserError, match="example 2"):
        next(batches(Broken(), seed=0, batch_size=2))


def test_refusals():
    with pytest.raises(UserError, match="batch_size 8 must be a multiple of .* processes 3"):
        batches(numbered(9), seed=0, batch_size=8, process_count=3)
    with pytest.raises(UserError, match="seed -1 must be"):
        batches(numbered(9), seed=-1, batch_size=8)
    for call in (lambda s: batches(s, seed=0, batch_size=4, balanced=True),
                 lambda s: InMemory.of(s, balanced=True)):  # fmt: skip
        with pytest.raises(UserError, match="balanced batches need labels"):
            call(numbered(9))
    with pytest.raises(UserError, match="under 2"):
        InMemory.take({"image": np.zeros((1 << 20, 1, 1, 1), np.uint8)}, jax.random.key(0), 0, 4096)


take = jax.jit(InMemory.take, static_argnames="batch_size")


def taken(memory: InMemory, step: int, batch_size: int, seed: int = 0) -> list[int]:
    batch = take(memory.arrays, jax.random.key(seed), jnp.int32(step), batch_size=batch_size)
    return index_of(batch)


def independent(n: int, position: int, seed: int = 0) -> int:
    """The example at a position, in Python's integers: Feistel on bit strings, cycle walking."""
    epoch, x = divmod(position, n)
    if n == 1:
        return 0
    key = jax.random.fold_in(jax.random.key(seed), epoch % 2**32)
    rounds = [int(k) for k in jax.random.bits(key, (8,), jnp.uint32)]
    bits = max(2, (n - 1).bit_length())

    def mixed(v: int) -> int:
        v = (v ^ (v >> 16)) * 0x7FEB352D % 2**32
        v = (v ^ (v >> 15)) * 0x846CA68B % 2**32
        return v ^ (v >> 16)

    while True:
        text = format(x, f"0{bits}b")
        left, right = text[: bits - bits // 2], text[bits - bits // 2 :]
        for k in rounds:
            share = mixed(int(right, 2) ^ k) % 2 ** len(left)
            left, right = right, format(int(left, 2) ^ share, f"0{len(left)}b")
        x = int(left + right, 2)
        if x < n:
            return x


@pytest.mark.parametrize("n", [2, 3, 13, 100])
def test_every_place_of_a_permutation_is_as_likely(n):
    """Chi-squared over where the first and the last example go, 4,000 keys."""
    keys = jax.vmap(jax.random.key)(jnp.arange(4000))
    places = jax.jit(jax.vmap(lambda j, key: permuted(j, n, key), in_axes=(None, 0)))
    for j in (0, n - 1):
        counts = np.bincount(places(jnp.uint32(j), keys), minlength=n)
        chi2 = ((counts - 4000 / n) ** 2 / (4000 / n)).sum()
        assert chi2 < n - 1 + 4 * np.sqrt(2 * (n - 1)) + 8
    if n <= 13:  # few enough that every pair of places must come up
        pairs = zip(*(np.asarray(places(jnp.uint32(j), keys)) for j in (0, 1)), strict=True)
        assert len(set(pairs)) == n * (n - 1)


@pytest.mark.parametrize(("n", "batch_size"), [(11, 4), (7, 7), (5, 12), (1, 3)])
def test_take_reads_the_endless_order(n, batch_size):
    memory = InMemory.of(numbered(n))
    found = sum((taken(memory, step, batch_size) for step in range(6)), [])
    assert found == [independent(n, i) for i in range(6 * batch_size)]
    whole = len(found) // n * n
    assert all(sorted(found[i : i + n]) == list(range(n)) for i in range(0, whole, n))


def test_take_counts_beyond_32_bits():
    memory, n, batch_size = InMemory.of(numbered(11)), 11, 64
    for step in (2**26 - 1, 2**26, 2**31 - 1):  # position 2^32 is in batch 2^26
        expected = [independent(n, step * batch_size + r) for r in range(batch_size)]
        assert taken(memory, step, batch_size) == expected


def test_take_balanced_draws_evenly():
    source = numbered(40, 5)
    memory = InMemory.of(source, balanced=True)
    found = np.array([taken(memory, step, 200) for step in range(40)]).ravel()
    counts = np.bincount(source.labels, minlength=5)
    present = counts > 0
    expected = len(found) / (present.sum() * counts[source.labels])
    # Chi-squared over the images: mean 39, standard deviation 8.8.
    chi2 = ((np.bincount(found, minlength=40) - expected) ** 2 / expected).sum()
    assert 10 < chi2 < 80
    batch = take(memory.arrays, jax.random.key(0), 0, batch_size=64)
    np.testing.assert_array_equal(batch["label"], source.labels[index_of(batch)])


def test_take_balanced_row_depends_on_its_number_alone():
    memory = InMemory.of(numbered(40, 5), balanced=True)
    assert taken(memory, 3, 16)[:5] == taken(memory, 3, 5)
    assert taken(memory, 3, 16) != taken(memory, 4, 16)
    assert taken(memory, 3, 16) != taken(memory, 3, 16, seed=1)


@pytest.mark.parametrize("balanced", [False, True])
def test_take_holds_what_the_source_holds(balanced):
    source = numbered(300, 3)
    batch = take(InMemory.of(source, balanced).arrays, jax.random.key(1), 5, batch_size=9)
    assert batch["image"].shape == (9, 1, 2, 1) and batch["image"].dtype == jnp.uint8
    assert batch["label"].dtype == jnp.int32
    np.testing.assert_array_equal(batch["label"], source.labels[index_of(batch)])


SHARDED = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from diffjax.data.loader import InMemory
from diffjax.data.sources import embedded
mesh = jax.make_mesh((4,), ("data",))
rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
for balanced in (False, True):
    arrays = InMemory.of(embedded(), balanced).arrays
    one = jax.jit(InMemory.take, static_argnums=3)
    four = jax.jit(InMemory.take, static_argnums=3, in_shardings=whole, out_shardings=rows)
    for step in (0, 21):
        a, b = (f(arrays, jax.random.key(0), step, 32) for f in (one, four))
        assert len(b["image"].sharding.device_set) == 4
        np.testing.assert_array_equal(a["image"], b["image"])
        np.testing.assert_array_equal(a["label"], b["label"])
print("same")
"""


def test_take_does_not_depend_on_sharding():
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    command = [sys.executable, "-c", SHARDED]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.stdout == "same\n", found.stderr
