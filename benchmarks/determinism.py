"""Does one seed give the same bits twice, and what does asking for it cost?

    python benchmarks/determinism.py --steps 200 --out determinism.json [--config.field=value ...]

Runs train.py twice with and twice without --deterministic, compares the exported weights byte for
byte and the speed by the median of the logged rates after the first fifth of the steps (compile
and autotuning). Ratios are of one session of one machine. Prints one JSON line.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from diffjax.errors import command
from diffjax.run import cli, logs

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


def run(workdir: Path, steps: int, flags: list[str]) -> tuple[str, float]:
    """Trains once; returns the SHA-256 of the weights and the median images per second."""
    words = [f"--config.steps={steps}", f"--config.log_every={max(1, steps // 20)}"]
    words += [f"--config.checkpoint_every={10**9}", f"--config.sample_every={10**9}"]
    words += ["--config.num_samples=8", "--config.sampling.steps=2", *flags]
    # Without the compilation cache: each run chooses its own kernels, as on a new machine.
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    words = [sys.executable, str(TRAIN), "--workdir", str(workdir), *words]
    subprocess.run(words, check=True, env=env)
    weights = hashlib.sha256((workdir / "weights.safetensors").read_bytes()).hexdigest()
    rates = [r["images_per_second"] for r in logs.read_metrics(workdir) if r["step"] > steps // 5]
    return weights, statistics.median(rates)


@command
def main(argv: list[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.Parser(prog="determinism.py", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=cli.positive, default=200)
    parser.add_argument("--out", default="", help="a JSON file")
    args = parser.parse(argv)
    overrides = [f"--config.{word}" for word in overrides]
    result = {"steps": args.steps, "overrides": overrides}
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in (("default", []), ("deterministic", ["--deterministic"])):
            runs = [run(Path(folder, f"{name}{i}"), args.steps, overrides + flags) for i in (0, 1)]
            result[name] = {
                "equal": runs[0][0] == runs[1][0],
                "images_per_second": [round(rate, 1) for _, rate in runs],
            }
        log = Path(folder, "default0", "log.jsonl").read_text().splitlines()[0]
        result["devices"] = json.loads(log)["devices"]
    fastest = [max(result[name]["images_per_second"]) for name in ("default", "deterministic")]
    result["cost"] = round(1 - fastest[1] / fastest[0], 4)
    text = json.dumps(result)
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
