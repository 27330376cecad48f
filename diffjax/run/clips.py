"""Frames as a clip: a GIF, or an MP4 where ffmpeg is there; two clips beside each other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffjax.errors import UserError
from diffjax.run import video

MAX_FRAMES = 20_000
PALETTE_FROM = 32  # frames of a clip that its 256 colours are chosen from


def save_clip(frames: np.ndarray, path: str | Path, fps: float = 15.0, scale: int | None = None):
    """Writes a clip.

    Args:
      frames: uint8 [T, H, W, 3].
      path: ends in .gif or .mp4. Written under a temporary name, then renamed.
      fps: frames a second. A GIF's frames last whole hundredths of a second, at least two.
      scale: each pixel becomes a square of so many; by default as many as make about 256.

    Raises:
      UserError: another ending, no ffmpeg for an MP4, or other frames.
    """
    path, frames = Path(path), _checked(frames)
    scale = scale or max(1, 256 // max(frames.shape[1:3]))
    video.save(_images(frames, scale), path, fps, _palette(frames), what="clip")


def beside(
    real: np.ndarray, imagined: np.ndarray, *, titles=("real", "imagined"), scale: int | None = None
) -> np.ndarray:
    """Puts two clips beside each other: the real game and the imagined one under the same actions.

    Args:
      real, imagined: uint8 [T, H, W, 3] of one shape.
      titles: above them.
      scale: as in `save_clip`, but done here, so that the titles can be read.

    Returns:
      uint8 [T, H', W', 3], to be saved with `scale=1`.
    """
    real, imagined = _checked(real), _checked(imagined)
    if real.shape != imagined.shape:
        raise UserError(f"clips of {real.shape} and {imagined.shape}: they should be alike")
    count, height, width, _ = real.shape
    scale = scale or max(1, 256 // max(height, width))
    font = ImageFont.load_default(14)
    gap, head = 8, 22
    sheet = Image.new("RGB", (2 * width * scale + gap, height * scale + head), "white")
    for i, title in enumerate(titles):
        ImageDraw.Draw(sheet).text((4 + i * (width * scale + gap), 3), title, "black", font)
    out = np.repeat(np.asarray(sheet)[None], count, 0)
    for i, clip in enumerate((real, imagined)):
        left = i * (width * scale + gap)
        large = clip.repeat(scale, 1).repeat(scale, 2)
        out[:, head:, left : left + width * scale] = large
    return out


def stacked(rows: dict[str, np.ndarray], *, scale: int | None = None) -> np.ndarray:
    """Puts rows of clips below each other, each under its title: real ones above imagined ones.

    Args:
      rows: {title: uint8 [N, T, H, W, 3]}, all of one shape.
      scale: as in `save_clip`, done here; by default as many as make about 128 a clip.

    Returns:
      uint8 [T, H', W', 3], to be saved with `scale=1`.
    """
    rows = {title: np.asarray(clips) for title, clips in rows.items()}
    shapes = {clips.shape for clips in rows.values()}
    if len(shapes) != 1 or any(clips.ndim != 5 for clips in rows.values()):
        raise UserError(f"rows of clips are uint8 [N, T, H, W, 3], all alike, not {shapes}")
    strips = []
    gap, head, font = 4, 22, ImageFont.load_default(14)
    for title, clips in rows.items():
        height, width = clips.shape[2:4]
        times = scale or max(1, 128 // max(height, width))
        large = [_checked(clip).repeat(times, 1).repeat(times, 2) for clip in clips]
        side = np.full((*large[0].shape[:2], gap, 3), 255, np.uint8)
        strip = np.concatenate([part for clip in large for part in (clip, side)][:-1], 2)
        sheet = Image.new("RGB", (strip.shape[2], head), "white")
        ImageDraw.Draw(sheet).text((4, 3), title, "black", font)
        strips += [np.repeat(np.asarray(sheet)[None], len(strip), 0), strip]
    return np.concatenate(strips, 1)


def _checked(frames: np.ndarray) -> np.ndarray:
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise UserError(f"a clip is uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    if len(frames) > MAX_FRAMES:
        raise UserError(f"a clip of {len(frames)} frames, up to {MAX_FRAMES} are wanted")
    return frames


def _images(frames: np.ndarray, scale: int) -> Iterator[Image.Image]:
    size = (frames.shape[2] * scale, frames.shape[1] * scale)
    return (Image.fromarray(f).resize(size, Image.Resampling.NEAREST) for f in frames)


def _palette(frames: np.ndarray) -> Image.Image:
    """One palette for all frames, of colours from all over the clip: none flickers or is lost."""
    rows = np.linspace(0, len(frames) - 1, min(len(frames), PALETTE_FROM)).astype(int)
    some = Image.fromarray(np.concatenate([frames[i] for i in rows]))
    return some.quantize(256, dither=Image.Dither.NONE)
