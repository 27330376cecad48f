"""Builds the data set inside the package from a colour emoji font.

  python -m diffjax.data.embedded.build --font NotoColorEmoji.ttf --names data.json --out DIR

`--font` is the bitmap (CBDT) build of Noto Color Emoji, `--names` is `en/data.json` of the npm
package emojibase-data; README.md beside this file says which versions of both made the files here.
Writes DIR/emoji.png, a sheet of `columns` tiles a row, and DIR/emoji.json, which names every tile.
The same inputs give the same bytes. Needs fontTools, which the package itself does not.
"""

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from diffjax.errors import UserError, command

COLUMNS = 32

# Numbers of emojibase's subgroups (meta/groups.json of the same package).
FACES = range(10)  # face-smiling .. face-concerned
CAT_FACE, HEART, PERSON, FRUIT, FLAGS = 12, 14, 23, 42, (98, 99)
ANGRY_FACES = {"1f624", "1f621", "1f620", "1f92c", "1f608", "1f47f"}

# kind -> rule(subgroup, name, key). The order is the order of the labels.
KINDS: dict[str, Callable[[int, str, str], bool]] = {
    "face": lambda group, name, key: group in FACES or key in ANGRY_FACES,
    "cat": lambda group, name, key: group == CAT_FACE or name == "cat face",
    "person": lambda group, name, key: group == PERSON,
    "heart": lambda group, name, key: group == HEART and name.endswith("heart"),
    "clock": lambda group, name, key: "o’clock" in name or "-thirty" in name,
    "moon": lambda group, name, key: " moon" in name or name in ("sun", "sun with face"),
    "flag": lambda group, name, key: group in FLAGS,
    "fruit": lambda group, name, key: group == FRUIT,
}


def emoji(entries: list[dict]) -> Iterator[tuple[str, str, str]]:
    """Yields (kind, name, key) of each emoji of a kind, skin tones included, in Unicode's order.

    A key is the code points in lower-case hex joined by "-", without U+FE0F.
    """
    every = [e for entry in entries for e in (entry, *entry.get("skins", ()))]
    every = sorted((e for e in every if "order" in e), key=lambda e: e["order"])
    for kind, rule in KINDS.items():
        for e in every:
            points = e["hexcode"].lower().split("-")
            key = "-".join(p for p in points if p != "fe0f")
            if rule(e["subgroup"], e["label"], key):
                yield kind, e["label"], key


class Glyphs:
    """Looks up the bitmap of an emoji in a font with CBDT bitmaps and GSUB ligatures."""

    def __init__(self, path: Path):
        try:
            from fontTools.ttLib import TTFont, TTLibError
        except ImportError:
            raise UserError("fontTools is missing: pip install fonttools") from None
        try:
            font = TTFont(path)
        except TTLibError as error:
            raise UserError(f"{path}: not a font ({error})") from None
        if "CBDT" not in font:
            raise UserError(f"{path}: no CBDT bitmaps in this font; take the bitmap build")
        self.font = font  # fontTools reads tables when they are asked for
        self.bitmaps = font["CBDT"].strikeData[0]
        self.names = font.getBestCmap()
        self.ligatures = {}
        for lookup in font["GSUB"].table.LookupList.Lookup:
            for table in lookup.SubTable:
                table = getattr(table, "ExtSubTable", table)
                for first, ligatures in getattr(table, "ligatures", {}).items():
                    for ligature in ligatures:
                        self.ligatures[first, *ligature.Component] = ligature.LigGlyph

    def __call__(self, key: str) -> bytes | None:
        """Returns the PNG of the emoji `key`, or None if the font has none."""
        glyphs = [self.names.get(int(point, 16)) for point in key.split("-")]
        while len(glyphs) > 1:
            for n in range(len(glyphs), 1, -1):
                if tuple(glyphs[:n]) in self.ligatures:
                    glyphs[:n] = [self.ligatures[tuple(glyphs[:n])]]
                    break
            else:
                return None
        return self.bitmaps[glyphs[0]].imageData if glyphs[0] in self.bitmaps else None


def tile(png: bytes, size: int) -> Image.Image:
    """Returns the RGB picture size x size of a bitmap: on white, padded to a square, area mean."""
    bitmap = Image.open(io.BytesIO(png)).convert("RGBA")
    side = max(bitmap.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(bitmap, ((side - bitmap.width) // 2, (side - bitmap.height) // 2))
    return square.convert("RGB").resize((size, size), Image.Resampling.BOX)


def build(font: Path, names: Path, size: int) -> tuple[Image.Image, dict, list[str]]:
    """Returns the sheet, what goes into emoji.json, and the names that the font lacks."""
    glyphs = Glyphs(font)
    images, tiles, missing = [], [], []
    for kind, name, key in emoji(json.loads(names.read_text(encoding="utf-8"))):
        png = glyphs(key)
        if png is None:
            missing.append(name)
            continue
        images.append([kind, name, key])
        tiles.append(tile(png, size))
    sheet = Image.new("RGB", (COLUMNS * size, -(-len(tiles) // COLUMNS) * size), "white")
    for i, picture in enumerate(tiles):
        sheet.paste(picture, (i % COLUMNS * size, i // COLUMNS * size))
    about = {
        "font": glyphs.font["name"].getDebugName(5),
        "font_sha256": hashlib.sha256(font.read_bytes()).hexdigest(),
        "names_sha256": hashlib.sha256(names.read_bytes()).hexdigest(),
    }
    table = {"size": size, "columns": COLUMNS, "kinds": list(KINDS), "about": about}
    return sheet, {**table, "images": images}, missing


@command
def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m diffjax.data.embedded.build")
    parser.add_argument("--font", type=Path, required=True, help="NotoColorEmoji.ttf")
    parser.add_argument("--names", type=Path, required=True, help="en/data.json of emojibase-data")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--size", type=int, default=24, help="pixels a side (default 24)")
    args = parser.parse_args(argv)
    for path in (args.font, args.names):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    sheet, table, missing = build(args.font, args.names, args.size)
    args.out.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out / "emoji.png", optimize=True)
    head = json.dumps({k: v for k, v in table.items() if k != "images"}, ensure_ascii=False)
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in table["images"])
    text = f'{head[:-1]}, "images": [\n{rows}\n]}}\n'
    (args.out / "emoji.json").write_text(text, encoding="utf-8")
    counts = [f"{kind} {sum(row[0] == kind for row in table['images'])}" for kind in KINDS]
    print(f"{len(table['images'])} images: {', '.join(counts)}")
    if missing:
        print(f"not in this font: {', '.join(missing)}")


if __name__ == "__main__":
    sys.exit(main())
