"""What .ci/run needs Python for.

`block` runs before anything is installed: it uses the standard library only.
"""

import argparse
import json
import re
import sys
import time
import zipfile
from pathlib import Path


def block(page: str, language: str, number: int) -> str:
    """Returns the number-th (from 1) fenced block of a language in a Markdown page."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", Path(page).read_text(), re.S | re.M)
    if len(found) < number:
        sys.exit(f"{page} has {len(found)} blocks of {language}, not {number}")
    newcomer = Path(page).name == "README.md"  # whose commands are one line each
    if newcomer and language == "sh" and len(found[number - 1].strip().splitlines()) != 1:
        sys.exit(f"{page}: block {number} is not one command line")
    return found[number - 1]


def check_run(workdir: str, loss_below: float, last_steps: int = 200) -> str:
    """Checks what training must leave behind; returns one line about it."""
    folder = Path(workdir)
    for name in ("samples.png", "loss.png", "metrics.jsonl", "config.json", "weights.safetensors"):
        if not (folder / name).is_file() or not (folder / name).stat().st_size:
            sys.exit(f"{folder / name} is missing or empty")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    end = records[-1]["step"]
    losses = [r["loss"] for r in records if r["step"] > end - last_steps]
    mean = sum(losses) / len(losses)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    seconds = events[-1]["time"] - events[0]["time"]
    about = (
        f"{folder}: {end} steps in {seconds:.0f} s, mean loss of the last {last_steps}: {mean:.4f}"
    )
    if not mean < loss_below:
        sys.exit(f"{about}, which is not below {loss_below}")
    if seconds > 300:
        about += "\nwarning: the README promises at most 300 s on two server cores"
    return about


def check_wheel(path: str, limit: int = 8 << 20) -> str:
    """Checks that a wheel holds data, weights and licences, and is no larger than it should be."""
    wanted = ("data/embedded/emoji.png", "data/embedded/emoji.json", "data/embedded/OFL.txt")
    wanted += ("metrics/emoji_classifier.safetensors", "licenses/LICENSE", "licenses/NOTICE")
    wanted += ("run/play.html",)
    names = zipfile.ZipFile(path).namelist()
    for name in wanted:
        if not any(n.endswith(name) for n in names):
            sys.exit(f"{path} lacks {name}")
    stray = [n for n in names if not n.startswith(("diffjax/", "diffjax-"))]
    if stray:
        sys.exit(f"{path} holds {stray[0]}, which is not part of the package")
    size = Path(path).stat().st_size
    if size > limit:
        sys.exit(f"{path}: {size} bytes, the limit is {limit}")
    return f"{Path(path).name}: {len(names)} files, {size / 2**20:.2f} MiB"


def run_notebooks(folder: str, timeout: int = 600) -> None:
    """Executes every notebook of a folder; the files are not changed."""
    import nbclient
    import nbformat

    paths = sorted(Path(folder).glob("*.ipynb"))
    if not paths:
        sys.exit(f"{folder}: no notebooks")
    for path in paths:
        begin = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        where = {"metadata": {"path": str(path.parent)}}
        nbclient.NotebookClient(
            notebook, timeout=timeout, kernel_name="python3", resources=where
        ).execute()
        cells = sum(cell.cell_type == "code" for cell in notebook.cells)
        print(f"{path}: {cells} cells in {time.monotonic() - begin:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("block")
    one.add_argument("page")
    one.add_argument("language")
    one.add_argument("number", type=int)
    one = commands.add_parser("check-run")
    one.add_argument("workdir")
    one.add_argument("--loss-below", type=float, required=True)
    commands.add_parser("check-wheel").add_argument("path")
    commands.add_parser("notebooks").add_argument("folder")
    args = parser.parse_args()
    if args.command == "block":
        sys.stdout.write(block(args.page, args.language, args.number))
    elif args.command == "check-run":
        print(check_run(args.workdir, args.loss_below))
    elif args.command == "check-wheel":
        print(check_wheel(args.path))
    else:
        run_notebooks(args.folder)


if __name__ == "__main__":
    main()
