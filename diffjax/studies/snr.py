"""Which noise suits these pictures: `python -m diffjax.studies.snr DATA [--size N] [--low M]`.

Compares the spectrum of pictures with that of noise at two resolutions, white and block noise, and
suggests noise levels and a block size for a relay. Writes NAME.json and NAME.png, and prints a
table.
"""

import functools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.special import ndtr

from diffjax.data import images
from diffjax.data.picture_files import Pictures, list_folder, list_zip
from diffjax.data.sources import open_source, split_folders
from diffjax.errors import UserError, choose, command
from diffjax.run import cli
from diffjax.studies import files, spectra

ENDINGS = (".json", ".png")
PICTURES = 256  # pixels a side, where pictures of any size are given and nothing is said
P_MEAN, P_STD = -1.2, 1.2
# What the released settings come to on photographs (64 to 256 pixels, cut 0.9): the start of
# sampling leaves the first octave that the low resolution lacks this far below the noise.
HIDDEN_DB = -10.7
TRAINED_ABOVE = 1.97  # times the start: sigma 1.77 is the largest in training for 0.9
PURE_NOISE_DB = -20.0  # of the lowest frequencies, where a first stage may start
LOW_POWER = 0.6  # block weight times its size: low-frequency power 1 + 0.6^2, as released


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="diffjax.studies.snr", description=__doc__.split(":")[0])
    add = parser.add_argument
    add("data", metavar="DATA", help="a folder or zip of pictures, an .npz, or emoji")
    add("--size", type=int, default=0, help="pixels a side; 0: arrays as they are, pictures 256")
    add(
        "--low",
        type=int,
        default=0,
        help="pixels on the shorter side of the lower resolution; 0: a quarter",
    )
    add("--reduce", default="box", help="how pictures are made small: box (means) or lanczos")
    add("--sigmas", default="0.1,1,10", help="noise levels to compare with, comma-separated")
    add("--block", type=int, default=0, help="size of the block noise; 0: the factor")
    add("--weight", type=float, default=0.15, help="weight of the block noise beside white noise")
    add("--num", type=cli.positive, default=256, help="how many pictures, spread evenly")
    add("--out", default="snr", help="NAME.json and NAME.png are written")
    args = parser.parse(argv)
    sigmas = _numbers(args.sigmas)
    choose(args.reduce, {"box": 0, "lanczos": 0}, "--reduce")
    if not 0 <= args.weight < 1e3:
        raise UserError(f"--weight {args.weight}: must be from 0 to 1000")
    out = files.place(args.out, ENDINGS)
    found = study(
        args.data, args.size, args.low, args.reduce, sigmas, args.block, args.weight, args.num
    )
    puts = dict(zip(ENDINGS, (files.write_json, _plot)))
    files.write(out, {ending: functools.partial(put, found) for ending, put in puts.items()})
    print(table(found))
    print(f"{out}.json, {out}.png")
    return 0


def study(
    data: str,
    size: int = 0,
    low: int = 0,
    reduce: str = "box",
    sigmas: tuple[float, ...] = (1.0,),
    block: int = 0,
    weight: float = 0.15,
    num: int = 256,
) -> dict:
    """The numbers behind the command, ready for JSON; the arguments are its flags.

    Powers and ratios are in dB, of pictures in [-1, 1]. `rings` are radii of one unit, `bands`
    octaves; `snr` is at sigma 1, at another it is 20 log10 sigma less. `block_error` and
    `block_bins` say of block noise of each size how far it is from the small picture's noise: mean
    |dB| over rings, and dB in bins of radius 8 wide.

    Raises:
      UserError: data or sizes that do not work.
    """
    source = _open(data, size, num)
    shape = next(source.images()).shape[:2]
    small = _small_shape(shape, low)
    whole = shape[0] % small[0] == 0 and shape[0] // small[0] == shape[1] / small[1]
    if reduce == "box" and not whole:
        raise UserError(
            f"--low {min(small)} is no whole fraction of {min(shape)}: add --reduce lanczos"
        )
    factor, limit = shape[0] / small[0], min(small)
    block = block or max(1, round(factor))
    if not 0 < block <= min(shape):
        raise UserError(f"--block {block}: must be from 1 to {min(shape)}")
    reduced = (_unit(_small(image, small, reduce)) for image in source.images())
    if whole:
        times = round(factor), round(factor)
        lower = spectra.picture_power(spectra.repeated(image, times) for image in reduced)
        noise = spectra.repeated_noise_power(*shape, times)
    else:
        lower = spectra.enlarged(spectra.picture_power(reduced), *shape)
        noise = spectra.enlarged(np.ones(small), *shape)
    powers = {
        "pictures": spectra.picture_power(_unit(i) for i in source.images()),
        "pictures_low": lower,
        "white": np.ones(shape),
        "white_low": noise,
        "block": spectra.block_noise_power(*shape, block),
        "mixed": spectra.mixed_noise_power(*shape, block, weight, normalize=True),
    }
    edges = spectra.bands(min(shape))
    shared = sum(top <= limit for _, top in edges)  # bands that both resolutions have
    banded = {name: spectra.in_bands(power, edges) for name, power in powers.items()}
    ratio = lambda picture, noise: spectra.decibel(banded[picture] / banded[noise])
    with np.errstate(invalid="ignore"):  # 0/0 beyond what the small picture has
        snr = {
            "low_white": ratio("pictures_low", "white_low")[:shared],
            "high_white": ratio("pictures", "white"),
            "high_block": ratio("pictures", "block"),
            "high_mixed": ratio("pictures", "mixed"),
        }
    rings = {name: spectra.decibel(spectra.by_radius(p)[1]) for name, p in powers.items()}
    rings |= {name: rings[name][: limit - 1] for name in ("pictures_low", "white_low")}
    sizes = range(1, min(2 * math.ceil(factor), min(shape)) + 1)
    blocks = {str(s): spectra.block_noise_power(*shape, s) for s in sizes}
    errors = {s: spectra.mismatch(power, noise, limit) for s, power in blocks.items()}
    bins = {s: spectra.deviations(power, noise, limit) for s, power in blocks.items()}
    rounded = lambda found: {k: np.round(v, 3).tolist() for k, v in found.items()}
    return {
        "data": source.name,
        "num": source.count,
        "skipped": source.skipped,
        "size": list(shape),
        "low": list(small),
        "factor": factor,
        "reduce": reduce,
        "block": block,
        "weight": weight,
        "sigmas": list(sigmas),
        "bands": [list(edge) for edge in edges],
        "snr": rounded(snr),
        "gap": np.round(snr["high_white"][:shared] - snr["low_white"], 3).tolist(),
        "gap_expected": round(float(20 * np.log10(factor)), 3),
        "block_error": rounded(errors),
        "block_bins": rounded(bins),
        "rings": rounded(rings),
        "suggested": suggest(powers, limit, errors),
    }


def suggest(powers: dict[str, np.ndarray], limit: int, errors: dict) -> dict:
    """Noise levels and block noise for a relay on these pictures.

    The start of sampling is the lowest level at which the first octave of detail that the small
    picture lacks is hidden as well as the released setting hides it in photographs; training goes
    as far above it as there. A first stage starts where noise is 20 dB above the lowest
    frequencies. The block size is the one whose spectrum is nearest to that of the small picture's
    noise. Blur and weight follow from the factor (see docs/relay.md).

    Args:
      powers: of "pictures" and "pictures_low" as `study` has them, [H, W].
      limit: the shorter side of the small picture: the radius that it resolves.
      errors: {size: dB} of block noise.
    """
    shape = powers["pictures"].shape
    factor = min(shape) / limit
    lacking = spectra.in_bands(powers["pictures"], [(limit, min(2 * limit, min(shape)))])[0]
    start = 10 ** ((float(spectra.decibel(lacking)) - HIDDEN_DB) / 20)
    lowest = [
        spectra.in_bands(powers[p], [(1, 4)])[0] / spectra.in_bands(powers[n], [(1, 4)])[0]
        for p, n in (("pictures_low", "white_low"), ("pictures", "white"))
    ]
    pure = [10 ** ((float(spectra.decibel(p)) - PURE_NOISE_DB) / 20) for p in lowest]
    top = TRAINED_ABOVE * start
    figures = lambda value: float(f"{value:.3g}")
    return {
        "truncation": figures(start),
        "quantile": round(float(ndtr((np.log(top) - P_MEAN) / P_STD)), 3),
        "sigma_max_in_training": figures(top),
        "block_size": int(min(errors, key=errors.get)),
        "block": figures(LOW_POWER / factor),
        "blur_max": figures(0.75 * factor),
        "first_stage_sigma_max": figures(pure[0]),
        "single_stage_sigma_max": figures(pure[1]),
    }


def table(found: dict) -> str:
    """The bands as text, one a line: signal-to-noise ratios at sigma 1, and the suggestion."""
    low, high = ("x".join(map(str, found[k])) for k in ("low", "size"))
    lines = [
        f"{found['data']}: {found['num']} pictures, {high} and {low}; SNR in dB at sigma 1",
        f"{'radius':>10} {low + ' white':>14} {high + ' white':>14} "
        f"{'block ' + str(found['block']):>10} {'mixed':>8} {'gap':>7}",
    ]
    for i, (a, b) in enumerate(found["bands"]):
        row = [found["snr"][k][i] for k in ("high_white", "high_block", "high_mixed")]
        shared = i < len(found["gap"])
        first = f"{found['snr']['low_white'][i]:.2f}" if shared else ""
        gap = f"{found['gap'][i]:.2f}" if shared else ""
        lines.append(
            f"{f'{a}-{b}':>10} {first:>14} {row[0]:14.2f} {row[1]:10.2f} {row[2]:8.2f} {gap:>7}"
        )
    lines.append(f"the same sigma means {found['gap_expected']:.2f} dB less noise at {high}")
    lines += [f"suggested {k}: {v}" for k, v in found["suggested"].items()]
    return "\n".join(lines)


class _Source:
    """Pictures one after another, as often as asked: uint8 [H, W, C] of one shape."""

    def __init__(self, name: str, count: int, read):
        self.name, self.count, self.read, self.skipped = name, count, read, 0

    def images(self) -> Iterator[np.ndarray]:
        return (self.read(i) for i in range(self.count))


def _open(data: str, size: int, num: int) -> _Source:
    place = Path(data).expanduser()
    folder = place.is_dir() and not (place / "dataset_info.json").is_file()
    if folder and split_folders(place):
        raise UserError(f"{place} holds the splits {', '.join(split_folders(place))}: name one")
    if size < 0:
        raise UserError(f"--size {size}: pixels a side, or 0")
    if folder:
        return _pictures(list_folder(place), size or PICTURES, num)
    if place.suffix.lower() == ".zip" and place.is_file():
        return _pictures(list_zip(place), size or PICTURES, num)
    source = open_source(data, image_size=size or None)
    count = min(len(source), num)
    at = np.linspace(0, len(source) - 1, count).astype(int)
    return _Source(source.name, count, lambda i: source[int(at[i])]["image"])


def _pictures(listed: Pictures, size: int, num: int) -> _Source:
    """Those of the listed pictures that are large enough: enlarging would invent no detail."""
    names = [listed.names[int(i)] for i in np.linspace(0, len(listed.names) - 1, 4 * num)]
    kept, skipped = [], 0
    for name in dict.fromkeys(names):
        picture = images.decode(listed.read(name), f"{listed.path}/{name}")
        if min(picture.size) < size:
            skipped += 1
        elif len(kept) < num:
            kept.append(images.crop_resize(picture, size))
    if not kept:
        raise UserError(f"{listed.path}: no picture has {size} pixels a side: give --size")
    source = _Source(listed.path.name, len(kept), kept.__getitem__)
    source.skipped = skipped
    return source


def _small_shape(shape: tuple[int, int], low: int) -> tuple[int, int]:
    """(height, width) of the small picture, `low` pixels on the shorter side."""
    short = min(shape)
    low = low or max(short // 4, 1)
    if not 4 <= low < short:
        raise UserError(f"--low {low}: must be from 4 to {short - 1}, below the pictures' {short}")
    return tuple(round(n * low / short) for n in shape)


def _small(image: np.ndarray, small: tuple[int, int], reduce: str) -> np.ndarray:
    (height, width), (h, w), channels = image.shape[:2], small, image.shape[2]
    if reduce == "lanczos":
        grey = image[..., 0] if channels == 1 else image
        picture = Image.fromarray(grey).resize((w, h), Image.Resampling.LANCZOS)
        return images.to_array(picture)
    return np.float64(image).reshape(h, height // h, w, width // w, channels).mean((1, 3))


def _unit(image: np.ndarray) -> np.ndarray:
    return np.float64(image) / 127.5 - 1


def _numbers(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise UserError(f"--sigmas {text}: numbers, comma-separated") from error
    if not all(0 < value < np.inf for value in values):
        raise UserError(f"--sigmas {text}: must be above 0")
    return values


def _plot(found: dict, path: Path) -> None:
    """Power of pictures and of noise against radius, at both resolutions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    rings, low = found["rings"], min(found["low"])
    r = np.arange(1, min(found["size"]))
    size, small = ("x".join(map(str, found[k])) for k in ("size", "low"))
    axis.plot(r, rings["pictures"], "tab:blue", lw=2, label=f"pictures {size}")
    shown = slice(None, low - 1)
    axis.plot(r[shown], rings["pictures_low"][shown], "tab:orange", lw=2, label=f"pictures {small}")
    for i, sigma in enumerate(found["sigmas"]):
        above, label = 20 * np.log10(sigma), (lambda text, i=i: text if not i else None)
        noise = lambda name, above=above: np.add(rings[name], above)
        axis.plot(r, noise("white"), "tab:blue", ls=":", label=label("white noise there"))
        axis.plot(
            r[shown], noise("white_low"), "tab:orange", ls=":",
            label=label("white noise there"),
        )  # fmt: skip
        axis.plot(
            r, noise("block"), "tab:green", ls="--", lw=1,
            label=label(f"block noise {found['block']} at {size}"),
        )  # fmt: skip
        axis.annotate(f"$\\sigma$ = {sigma:g}", (1.05, above), va="bottom", color="tab:blue")
    axis.axvline(low, color="grey", lw=1)
    axis.set(xscale="log", xlabel="radius in the DCT", ylabel="power, dB", xlim=(1, r[-1]))
    axis.set_title(f"{found['data']}: {found['num']} pictures")
    axis.grid(alpha=0.3, which="both")
    axis.legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=100, format="png")


if __name__ == "__main__":
    sys.exit(main())
