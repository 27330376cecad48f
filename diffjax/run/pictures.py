"""Pictures for a person: a grid of samples, the curve of the loss."""

import json
import math
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def save_image(image: Image.Image, path: Path) -> None:
    """Writes a PNG under a temporary name, then renames it: a reader never sees half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    image.save(temporary, format="PNG")
    os.replace(temporary, path)


def write_array(image: np.ndarray, path: Path) -> None:
    """Writes one image uint8 [H, W, C], C of 1 or 3, as a PNG of its own size."""
    image = np.asarray(image)
    save_image(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), path)


def labelled_grid(images, labels, names, path: Path) -> None:
    """Writes `labelled_sheet` as the PNG `path`."""
    save_image(labelled_sheet(images, labels, names), path)


def labelled_sheet(images, labels, names) -> Image.Image:
    """Draws images in rows, one row a class with its name where the classes come equally often.

    Args:
      images: uint8 [n, H, W, C] with C of 1 or 3. Small ones are enlarged by whole numbers, without
        smoothing.
      labels: int [n], or None.
      names: class names.
    """
    images = np.asarray(images)
    count, height, width, channels = images.shape
    rows, titles = None, []
    if labels is not None:
        labels = np.asarray(labels)
        kinds, counts = np.unique(labels, return_counts=True)
        if len(set(counts)) == 1 and 1 < len(kinds) <= 100:
            images = images[np.argsort(labels, kind="stable")]
            rows, titles = len(kinds), [str(names[k]) for k in kinds]
    if rows is None:
        rows = max(1, math.floor(math.sqrt(count)))
    columns = math.ceil(count / rows)
    scale = max(1, 72 // max(height, width))
    gap = max(1, scale)
    cell_h, cell_w = height * scale + gap, width * scale + gap
    font = ImageFont.load_default(max(10, min(16, cell_h // 4)))
    margin = max((int(font.getlength(t)) for t in titles), default=0)
    margin += 2 * gap + 6 if margin else gap
    sheet = Image.new("RGB", (margin + columns * cell_w, gap + rows * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    for row, title in enumerate(titles):
        draw.text((gap + 3, gap + row * cell_h + cell_h // 2), title, "black", font, anchor="lm")
    for i, image in enumerate(images):
        if channels == 1:
            image = image.repeat(3, axis=-1)
        tile = Image.fromarray(image[..., :3]).resize((width * scale, height * scale), 0)
        sheet.paste(tile, (margin + i % columns * cell_w, gap + i // columns * cell_h))
    return sheet


def loss_plot(metrics: Path, path: Path, panels: tuple = ()) -> None:
    """Draws the loss and the learning rate of a metrics.jsonl over the steps, or what panels say.

    Args:
      metrics: the file; one without records draws nothing.
      path: the PNG to write.
      panels: ((title, names of metrics, a level to draw as a line or None), ...), one above the
        other; metrics that there are none of are left out. (): loss and rate.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    text = metrics.read_text() if metrics.exists() else ""
    records = [json.loads(line) for line in text.splitlines()]
    records = [r for r in records if "loss" in r]
    if not records:
        return
    figure = Figure(figsize=(7, max(4, 2.4 * len(panels))), layout="constrained")
    FigureCanvasAgg(figure)
    if panels:
        _draw_panels(figure, records, panels)
    else:
        _draw_loss(figure.add_subplot(), records)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=100, format="png")
    os.replace(temporary, path)


def _draw_loss(axis, records: list[dict]) -> None:
    steps = np.array([r["step"] for r in records])
    loss = np.array([r["loss"] for r in records])
    window = max(1, len(loss) // 25)
    smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
    axis.plot(steps, loss, color="tab:blue", alpha=0.25, label="loss")
    if window > 1:
        axis.plot(
            steps[window - 1 :],
            smooth,
            color="tab:blue",
            label=f"mean over {window * (steps[1] - steps[0])} steps",
        )
    axis.set(xlabel="step", ylabel="loss", yscale="log", title="training loss")
    axis.grid(alpha=0.3, which="both")
    rates = axis.twinx()
    rates.plot(steps, [r["learning_rate"] for r in records], "tab:orange", lw=1, alpha=0.7)
    rates.set_ylabel("learning rate", color="tab:orange")
    axis.legend(loc="upper right")


def _draw_panels(figure, records: list[dict], panels: tuple) -> None:
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, names, level) in zip(axes, panels):
        for name in names:
            found = [(r["step"], r[name]) for r in records if name in r]
            if found:
                axis.plot(*zip(*found), lw=1, label=name)
        if level is not None:
            axis.axhline(level, color="grey", lw=1, ls=":")
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(loc="upper right", fontsize=8)
    axes[-1].set_xlabel("step")
