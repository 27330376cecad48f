"""Pictures one after the other as a file: a GIF, or an MP4 where ffmpeg is there."""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from diffjax.errors import UserError


def save(
    frames: Iterator[Image.Image],
    path: Path,
    fps: float,
    palette: Image.Image,
    *,
    what: str = "video",
    **gif,
) -> None:
    """Writes frames of one size as they come, under a temporary name, then renames it.

    Args:
      frames: RGB, at least one.
      path: ends in .gif or .mp4; its folder is made.
      fps: frames a second. A GIF's frames last whole hundredths of a second, at least two.
      palette: of a GIF: an image of mode P with the 256 colours of all of its frames.
      what: it is, for messages.
      gif: further words for Pillow's writer of GIFs.

    Raises:
      UserError: another ending, no ffmpeg for an MP4, or one that fails.
    """
    path, ending = Path(path), Path(path).suffix.lower()
    if ending not in (".gif", ".mp4"):
        raise UserError(f"{path}: a {what} must end in .gif or .mp4")
    if not 0 < fps <= 1000:
        raise UserError(f"{path}: fps {fps}, above 0 and up to 1000 is wanted")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.tmp{ending}")
    try:
        if ending == ".mp4":
            _write_mp4(frames, temporary, fps)
        else:
            few = (f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames)
            how = {"save_all": True, "append_images": few, "loop": 0, **gif}
            next(few).save(temporary, format="GIF", duration=max(20, round(100 / fps) * 10), **how)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def ffmpeg() -> str:
    """Returns the path of ffmpeg, or of the one that imageio-ffmpeg brings; raises `UserError`."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise UserError(
            "an MP4 needs ffmpeg: install it, or pip install imageio-ffmpeg, or ask for a .gif"
        ) from None


def _write_mp4(frames: Iterator[Image.Image], path: Path, fps: float) -> None:
    """Writes frames of one size as H.264, as they come; raises `UserError` where ffmpeg fails."""
    program = ffmpeg()
    first = next(frames)
    width, height = (v // 2 * 2 for v in first.size)  # the codec takes even sides only
    words = [program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    words += ["-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    words += ["-pix_fmt", "yuv420p", "-crf", "18", str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            for frame in itertools.chain([first], frames):
                process.stdin.write(frame.crop((0, 0, width, height)).tobytes())
        except BrokenPipeError:  # it says why below
            pass
        _, said = process.communicate()
    if process.returncode:
        reason = " ".join(said.decode("utf-8", "replace").split())[:200]
        raise UserError(f"{path.name}: ffmpeg failed ({reason})")
