"""Which examples are in batch i: a function of (seed, i), so that nothing has to be saved.

Data on disk go through `batches`, one host's rows of each global batch, read by position. Data that
fit on the device go through `InMemory.take` inside the jitted step. In both, row r of batch i is
the same on any number of hosts and devices, and a resumed run continues with the batch it missed.
"""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.data.base import ArraySource, Source
from diffjax.errors import UserError

MAX_BATCHES = 1 << 40  # Grain wants a length
EXAMPLES = ("image", "motion", "moment")  # one of them is in every set, a row an example
ASIDE = 2**32 - 1  # a stream of randomness above every row
FEISTEL_ROUNDS = 8  # even, so that the two halves end where they began


def by_class(source: Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (order [n], first [K], count [K]), int32, over the K classes that have images: the
    images of the k-th of them are order[first[k] : first[k] + count[k]].

    Raises:
      UserError: the source has no labels.
    """
    if source.labels is None:
        raise UserError(f"{source.name}: balanced batches need labels, and this set has none")
    _, count = np.unique(source.labels, return_counts=True)
    order = np.argsort(source.labels, kind="stable")
    first = np.cumsum(count) - count
    return order.astype(np.int32), first.astype(np.int32), count.astype(np.int32)


def positions(source: Source, seed: int, balanced: bool = False) -> Callable[[int], int]:
    """Returns the endless order of a source: position -> index, by random access.

    Unbalanced, it is Grain's `seed(seed).shuffle().repeat()`: each n positions from a multiple of n
    visit every example once, in another order each time. Balanced, each K positions from a multiple
    of K visit every class with images once, in another order each time, and each class goes through
    its images as the whole does when unbalanced.

    Raises:
      UserError: balanced, and the source has no labels.
    """
    if not balanced:
        import grain

        whole = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
        return lambda position: int(whole[position])
    order, first, count = by_class(source)
    size = len(count)

    # Grain's shuffle takes milliseconds an element for sets as small as a class may be.
    @functools.lru_cache(maxsize=4 * size + 4)
    def permutation(stream: int, epoch: int, n: int) -> np.ndarray:
        return np.random.default_rng([seed, stream, epoch]).permutation(n)

    def at(position: int) -> int:
        turn, j = divmod(position, size)
        k = int(permutation(size, turn, size)[j])
        epoch, j = divmod(turn, int(count[k]))
        return int(order[first[k] + permutation(k, epoch, int(count[k]))[j]])

    return at


@dataclass(frozen=True)
class _Rows:
    """This process' rows of the batches from `start` on, one after the other, for Grain to read."""

    source: Source
    at: Callable[[int], int]
    batch_size: int
    start: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return MAX_BATCHES * (self.batch_size // self.process_count)

    def __getitem__(self, j: int) -> dict[str, np.ndarray]:
        share = self.batch_size // self.process_count
        i, r = divmod(int(j), share)
        first = (self.start + i) * self.batch_size + self.process_index * share
        return self.source[self.at(first + r)]


def batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    start: int = 0,
    balanced: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    read_options: Any = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Returns an endless iterator over one process' part of the batches start, start + 1, ...

    Global batch i is positions i B .. (i + 1) B of `positions`; process p of P yields its rows
    p B/P .. (p + 1) B/P as {"image": uint8 [B/P, H, W, C], "label": int32 [B/P]}. There is no state
    to save: resuming at batch i is `start=i`, on any number of processes.

    Args:
      source: what to read.
      seed: the run's seed, 0 <= seed < 2^32.
      batch_size: B, over all processes.
      start: the first batch.
      balanced: as many examples of each class (see `positions`).
      process_index, process_count: p and P.
      read_options: `grain.ReadOptions`; by default up to 4 threads read ahead up to 4 batches.

    Raises:
      UserError: batch_size is no multiple of process_count, a seed out of range, or balanced
        without labels; and, while iterating, what the source raises.
    """
    import grain

    if not 0 <= seed < 1 << 32:
        raise UserError(f"seed {seed} must be 0 or more and below 2^32")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size {batch_size} must be a multiple of the number of processes {process_count}"
        )
    at = positions(source, seed, balanced)
    rows = _Rows(source, at, batch_size, start, process_index, process_count)
    if read_options is None:
        threads = min(4, os.cpu_count() or 1)
        read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    data = grain.MapDataset.source(rows).batch(batch_size // process_count)
    return iter(data.to_iter_dataset(read_options))


def take(
    arrays: dict,
    key: jax.Array,
    step: jax.Array | int,
    batch_size: int,
    gather: Callable | None = None,
) -> dict:
    """Returns batch `step` of data on the device.

    It is {"image": uint8 [B, H, W, C], "label": int32 [B]}, the label if there is one, or what
    `gather` makes of the examples' numbers. Pure, for use inside jit with a traced `step`.

    Without the tables of `balanced`, the batches read one endless sequence in which every n
    positions from a multiple of n are a new permutation of the set: row r of batch i is at position
    i B + r, and epoch e's permutation is keyed by fold_in(key, e). With them, each row draws a
    class uniformly, then one of its images uniformly, from fold_in(fold_in(key, step), r).

    Args:
      arrays: `InMemory.arrays`, on the device.
      key: the run's data key, the same for every step.
      step: int32 scalar, 0 or more.
      batch_size: B, static; any size, also above n.
      gather: (arrays, index uint32 [B], keys [B]) -> batch, for sets that are not pictures. Its
        keys are of the row and the step, and nothing else draws from them.

    Raises:
      UserError: n B is 2^32 or more.
    """
    data_key = key
    step = jnp.asarray(step).astype(jnp.uint32)
    rows = jnp.arange(batch_size, dtype=jnp.uint32)
    if "order" in arrays:
        key = jax.random.fold_in(key, step)
        index = jax.vmap(lambda r: _draw_balanced(arrays, jax.random.fold_in(key, r)))(rows)
    else:
        size = next(len(arrays[name]) for name in EXAMPLES if name in arrays)
        index = _shuffled(size, key, step, rows)
    if gather is not None:
        of_step = jax.random.fold_in(jax.random.fold_in(data_key, step), ASIDE)
        return gather(arrays, index, jax.vmap(lambda r: jax.random.fold_in(of_step, r))(rows))
    return {name: arrays[name][index] for name in ("image", "label") if name in arrays}


def _draw_balanced(arrays: dict, key: jax.Array) -> jax.Array:
    key_class, key_image = jax.random.split(key)
    k = jax.random.randint(key_class, (), 0, len(arrays["count"]))
    j = jax.random.randint(key_image, (), 0, arrays["count"][k])
    return arrays["order"][arrays["first"][k] + j]


def _shuffled(n: int, key: jax.Array, step: jax.Array, rows: jax.Array) -> jax.Array:
    size = len(rows)
    if n * size >= 1 << 32:
        raise UserError(f"batch_size {size} of {n} examples: the product must be under 2^32")
    # step B + r overflows in a long run. With step = q n + s it is q B epochs and s B + r.
    q, s = step // n, step % n
    position = s * size + rows
    epoch = q * size + position // n
    return jax.vmap(lambda e, j: permuted(j, n, jax.random.fold_in(key, e)))(epoch, position % n)


def permuted(j: jax.Array, n: int, key: jax.Array) -> jax.Array:
    """Returns where a keyed permutation of 0 .. n - 1 takes j, uint32, without making the whole.

    A Feistel network (Luby & Rackoff 1988) permutes the numbers of as many bits as n - 1 has: each
    round mixes one half of the bits into the other, which can be undone whatever the mixing is. A
    result of n or more is put in again until it is below n ("cycle walking", Black & Rogaway
    2002), fewer than twice in the mean. So a batch costs the same at any size of the set, where
    jax.random.permutation would sort it all in each step.

    Args:
      j: uint32 scalar below n.
      n: size of the set, below 2^31.
      key: the permutation's.
    """
    if n == 1:
        return jnp.zeros_like(j)
    bits = max(2, (n - 1).bit_length())
    low, rounds = bits // 2, jax.random.bits(key, (FEISTEL_ROUNDS,), jnp.uint32)

    def once(x):
        left, right = x >> low, x & ((1 << low) - 1)
        for i in range(FEISTEL_ROUNDS):  # the halves swap places, and with them their widths
            width = low if i % 2 else bits - low
            left, right = right, left ^ (_mixed(right ^ rounds[i]) & ((1 << width) - 1))
        return left << low | right

    return jax.lax.while_loop(lambda x: x >= n, once, once(j))


def _mixed(x: jax.Array) -> jax.Array:
    """A hash of 32 bits whose every output bit depends on every input bit."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ x >> shift) * jnp.uint32(factor)
    return x ^ x >> 16


@dataclass(frozen=True, eq=False)
class InMemory:
    """A data set to be put on the device once and indexed inside the step.

    Attributes:
      arrays: NumPy arrays for `take`: "image" uint8 [n, H, W, C]; "label" int32 [n] if there are
        labels; if balanced, the tables of `by_class`: "order" [n], "first" [K], "count" [K].
        A source that is not of pictures brings its own arrays.
      gather: what `take` is given for such a source, else None.
    """

    arrays: dict[str, np.ndarray]
    gather: Callable | None = None

    take = staticmethod(take)

    @classmethod
    def of(cls, source, balanced: bool = False) -> "InMemory":
        """Returns the arrays of a source in memory: an `ArraySource`, or one that has `arrays()`
        and `gather` itself.

        Raises:
          UserError: balanced, and the source has no labels.
        """
        gather = None
        if isinstance(source, ArraySource):
            arrays = {"image": source.images}
            if source.labels is not None:
                arrays["label"] = source.labels
        else:
            arrays, gather = dict(source.arrays()), source.gather
        if balanced:
            arrays |= dict(zip(("order", "first", "count"), by_class(source), strict=True))
        return cls(arrays, gather)
