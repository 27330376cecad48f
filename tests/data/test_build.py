import io
import json
from importlib.resources import files

import numpy as np
from PIL import Image

from diffjax.data.embedded import build


def entry(name: str, code: str, subgroup: int, order: int, **more) -> dict:
    return {"label": name, "hexcode": code, "subgroup": subgroup, "order": order, **more}


def test_kinds_follow_their_rules():
    adult = entry("person: light skin tone", "1F9D1-1F3FB", 23, 8)
    entries = [
        entry("person", "1F9D1", 23, 7, skins=[adult]),
        entry("regional indicator A", "1F1E6", 98, 0),
        entry("grinning face", "1F600", 0, 1),
        entry("angry face", "1F620", 10, 2),
        entry("skull", "1F480", 10, 3),
        entry("red heart", "2764-FE0F", 14, 4),
        entry("love letter", "1F48C", 14, 5),
        entry("cat face", "1F431", 34, 6),
        entry("dog face", "1F436", 34, 6),
        entry("twelve-thirty", "1F567", 58, 9),
        entry("alarm clock", "23F0", 58, 10),
        entry("new moon", "1F311", 59, 11),
        entry("sun", "2600-FE0F", 59, 12),
        entry("sun behind cloud", "26C5", 59, 13),
        entry("flag: Wales", "1F3F4-E0067-E007F", 99, 14),
        entry("grapes", "1F347", 42, 15),
    ]
    del entries[1]["order"]
    found = list(build.emoji(entries))
    assert [(kind, name) for kind, name, _ in found] == [
        ("face", "grinning face"),
        ("face", "angry face"),
        ("cat", "cat face"),
        ("person", "person"),
        ("person", "person: light skin tone"),
        ("heart", "red heart"),
        ("clock", "twelve-thirty"),
        ("moon", "new moon"),
        ("moon", "sun"),
        ("flag", "flag: Wales"),
        ("fruit", "grapes"),
    ]
    assert {name: key for _, name, key in found}["red heart"] == "2764"


def test_tile_is_the_area_mean_on_white():
    rgba = np.random.default_rng(0).integers(0, 256, (8, 12, 4), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(rgba).save(data, "PNG")
    alpha = rgba[..., 3:] / 255
    square = np.full((12, 12, 3), 255.0)
    square[2:10] = rgba[..., :3] * alpha + 255 * (1 - alpha)
    expected = square.reshape(4, 3, 4, 3, 3).mean((1, 3))
    np.testing.assert_allclose(np.asarray(build.tile(data.getvalue(), 4)), expected, atol=1.5)


def test_ligatures_are_followed():
    glyphs = object.__new__(build.Glyphs)
    glyphs.names = {0x1: "a", 0x2: "b", 0x3: "c"}
    glyphs.ligatures = {("a", "b"): "ab", ("ab", "c"): "abc"}
    glyphs.bitmaps = {g: type("Bitmap", (), {"imageData": g.encode()}) for g in ("a", "ab", "abc")}
    assert [glyphs(key) for key in ("1", "1-2", "1-2-3")] == [b"a", b"ab", b"abc"]
    assert [glyphs(key) for key in ("2", "1-3", "9", "1-9")] == [None] * 4


def test_the_files_in_the_package():
    folder = files("diffjax.data") / "embedded"
    table = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    assert table["kinds"] == list(build.KINDS)
    assert len({key for _, _, key in table["images"]}) == len(table["images"]) == 622
    assert "SIL OPEN FONT LICENSE Version 1.1" in (folder / "OFL.txt").read_text()
    about, readme = table["about"], (folder / "README.md").read_text()
    assert about["font_sha256"] in readme and about["names_sha256"] in readme
    assert sum(len(p.read_bytes()) for p in folder.iterdir() if p.is_file()) < 1 << 20
