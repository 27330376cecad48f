"""Makes a data set of one image size from pictures.

  python -m diffjax.prepare SRC --size N --out FILE.zip

SRC is a folder of pictures (labelled by its first-level subfolders, if there are several) or a zip
of them. Each picture is turned upright, put on white, cropped to its centre square and scaled
(`diffjax.data.images.crop_resize`).
"""

import contextlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffjax.data import images
from diffjax.data.picture_files import Pictures, labels_of, list_folder, list_zip
from diffjax.data.reading import not_found, size_text
from diffjax.data.sources import split_folders
from diffjax.errors import UserError, command
from diffjax.run.cli import Parser, positive

MAX_NPZ_BYTES = 4 << 30
MAX_SIZE = 4096


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """Yields a temporary path beside `out`, which takes its place if the block succeeds."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def converted(
    pictures: Pictures, chosen: Iterable[int], size: int, stop: bool, skipped: list[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, uint8 [size, size, 3]) of the chosen pictures that can be read.

    Names of the others are appended to `skipped` and said on standard error; with `stop`, the
    first of them raises `UserError`.
    """
    progress = tqdm(chosen, unit=" pictures", disable=not sys.stderr.isatty())
    for i in progress:
        name = pictures.names[i]
        try:
            image = images.decode(pictures.read(name), f"{pictures.path}: {name}")
            yield i, images.crop_resize(image, size)
        except UserError as error:
            if stop:
                raise
            skipped.append(name)
            progress.write(f"skipped {error}", file=sys.stderr)


def write_zip(path: Path, rows: Iterator, labels: np.ndarray | None, class_names: tuple) -> int:
    """Writes EDM's format (see `diffjax.data.picture_files`); returns the number of pictures.

    As in EDM, a picture is named by its index in the source, so a skipped one leaves a gap.
    """
    names: dict[int, str] = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data: bytes) -> None:
            # ZipInfo's own date, not today's: the same pictures give the same file.
            archive.writestr(zipfile.ZipInfo(name), data)

        for i, array in rows:
            png = io.BytesIO()
            Image.fromarray(array).save(png, "PNG")
            names[i] = f"{i:08d}"[:5] + f"/img{i:08d}.png"
            add(names[i], png.getvalue())
        table = {"labels": None}
        if labels is not None:
            table["labels"] = [[name, int(labels[i])] for i, name in names.items()]
            table["class_names"] = list(class_names)
        add("dataset.json", json.dumps(table).encode())
    return len(names)


def write_npz(path: Path, rows: Iterator, labels: np.ndarray | None, class_names: tuple) -> int:
    """Writes `images` uint8 [n, size, size, 3], `labels` int32 [n] and `class_names` as an .npz;
    returns n."""
    pairs = list(rows)
    arrays = {"images": np.array([image for _, image in pairs], np.uint8)}
    if labels is not None:
        arrays["labels"] = np.array([labels[i] for i, _ in pairs], np.int32)
        arrays["class_names"] = np.array(class_names, np.str_)
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)
    return len(pairs)


def list_source(place: Path) -> Pictures:
    """Lists the pictures of SRC; raises `UserError` where it is missing or holds splits."""
    if not place.exists():
        raise not_found(place)
    if not place.is_dir():
        return list_zip(place)
    splits = split_folders(place)
    if splits:
        raise UserError(f"{place} holds the splits {', '.join(splits)}: prepare each by itself")
    return list_folder(place)


def parse(argv: list[str]):
    parser = Parser(prog="python -m diffjax.prepare", description=__doc__.split("\n")[0])
    parser.add_argument("src", type=Path, metavar="SRC", help="folder or zip of pictures")
    parser.add_argument("--size", type=positive, required=True, help="pixels a side")
    parser.add_argument("--out", type=Path, required=True, help="a .zip (EDM's format) or .npz")
    parser.add_argument("--limit", type=positive, help="convert this many, spread evenly over all")
    parser.add_argument(
        "--on-error", choices=("skip", "stop"), default="skip", help="for unreadable pictures"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    args = parser.parse(argv)
    if args.size > MAX_SIZE:
        raise UserError(f"--size {args.size}: the limit is {MAX_SIZE}")
    if args.out.suffix not in WRITERS:
        raise UserError(f"--out {args.out}: end it with .zip or .npz")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"--out {args.out} exists; add --overwrite to replace it")
    return args


WRITERS = {".zip": write_zip, ".npz": write_npz}


@command
def main(argv: list[str]) -> None:
    args = parse(argv)
    pictures = list_source(args.src)
    labels, class_names = labels_of(pictures)
    total = len(pictures.names)
    count = min(total, args.limit or total)
    # Spread over all, since the names are sorted by class.
    chosen = [i * total // count for i in range(count)]
    room = count * args.size**2 * 3
    if args.out.suffix == ".npz" and room > MAX_NPZ_BYTES:
        raise UserError(f"--out {args.out} would hold {size_text(room)}: use a .zip")
    skipped: list[str] = []
    with replacing(args.out) as temporary:
        rows = converted(pictures, chosen, args.size, args.on_error == "stop", skipped)
        done = WRITERS[args.out.suffix](temporary, rows, labels, class_names)
        if not done:
            raise UserError(f"{args.src}: none of its {count} pictures can be read")
    classes = f"{len(class_names)} classes" if class_names else "no classes"
    print(
        f"{args.out}: {done} pictures of {args.size}x{args.size}, {classes}, skipped {len(skipped)}"
    )


if __name__ == "__main__":
    sys.exit(main())
