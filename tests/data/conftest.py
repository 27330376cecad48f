import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encode_png(image: np.ndarray, **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG", **options)
    return data.getvalue()


class Make:
    """Makes small data sets in a folder."""

    def __init__(self, root: Path):
        self.root = root
        self.png = encode_png
        self.rng = np.random.default_rng(0)

    def image(self, *shape: int) -> np.ndarray:
        return self.rng.integers(0, 256, shape or (6, 6, 3), dtype=np.uint8)

    def folder(self, files: dict[str, np.ndarray | bytes], name: str = "set") -> Path:
        for file, content in files.items():
            path = self.root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else encode_png(content))
        return self.root / name

    def zip(
        self, files: dict, table: dict | bytes | None = None, name="set.zip", deflate=False
    ) -> Path:
        method = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
        with zipfile.ZipFile(self.root / name, "w", method) as archive:
            for file, content in files.items():
                data = content if isinstance(content, bytes) else encode_png(content)
                archive.writestr(file, data)
            if table is not None:
                text = table if isinstance(table, bytes) else json.dumps(table)
                archive.writestr("dataset.json", text)
        return self.root / name

    def npz(self, name: str = "set.npz", **arrays) -> Path:
        np.savez(self.root / name, **arrays)
        return self.root / name


@pytest.fixture
def make(tmp_path) -> Make:
    return Make(tmp_path)


@pytest.fixture(scope="session")
def png():
    """image -> the bytes of a PNG."""
    return encode_png


@pytest.fixture(scope="session")
def check_contract():
    """Checks what `diffjax.data.base.Source` promises of the first and last example."""

    def check(source):
        assert isinstance(source.name, str) and len(source.fingerprint) == 16
        assert source.num_classes == len(source.class_names)
        assert (source.labels is None) == (source.num_classes == 0)
        for i in (0, len(source) - 1):
            example = source[i]
            assert example["image"].dtype == np.uint8
            assert example["image"].shape == tuple(source.image_shape)
            assert ("label" in example) == (source.labels is not None)
            if "label" in example:
                assert example["label"].dtype == np.int32 and np.ndim(example["label"]) == 0
                assert example["label"] == source.labels[i]

    return check
