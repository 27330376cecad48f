"""What a recorded trace of the JAX profiler spent its time on, kernel by kernel.

    python benchmarks/kernel_times.py FOLDER [--out kernels.json]

FOLDER is what `train.py --profile_steps` (RUN/profile) or `edm_speed.py --profile` wrote, on a GPU.
Kernels are put in kinds by their names: convolutions are cuDNN's, products are cuBLAS's and
Triton's GEMM fusions, and XLA's fusions are reductions (statistics of norms, sums of gradients)
and element-wise work. Prints a table; the share of the span in which no kernel ran is `idle`.
"""

import collections
import json
import re
import sys
from pathlib import Path

from jax.profiler import ProfileData

from diffjax.errors import UserError, command
from diffjax.run import cli

KINDS = (
    ("product", r"gemm_fusion|triton_gemm|cublas|^nvjet|gemv"),
    ("convolution", r"cudnn|xmma|implicit|conv|cutlass|wgrad|dgrad|sm90|sm80"),
    ("copy", r"memcpy|memset|copy"),
    ("reduction", r"reduce"),
    ("transpose", r"transpose"),
    ("element-wise", r"loop_|fusion|wrapped|broadcast|select|concat|scatter|gather|iota|threefry"),
)


def kind(name: str) -> str:
    """The kind of a kernel by its name."""
    return next((k for k, words in KINDS if re.search(words, name, re.I)), "other")


def kernels(folder: Path) -> dict:
    """{span_ms, busy_ms, kinds: {kind: ms}, kernels: [[ms, count, name]]} of all streams."""
    files = sorted(folder.rglob("*.xplane.pb"))
    if not files:
        raise UserError(f"{folder}: no trace of the JAX profiler (*.xplane.pb)")
    total, count, spans = collections.Counter(), collections.Counter(), []
    for plane in ProfileData.from_file(str(files[-1])).planes:
        if "GPU" not in plane.name:
            continue
        for line in plane.lines:
            if "Stream" not in line.name:
                continue
            for event in line.events:
                total[event.name] += event.duration_ns
                count[event.name] += 1
                spans.append((event.start_ns, event.start_ns + event.duration_ns))
    if not spans:
        raise UserError(f"{files[-1]}: no kernels of a GPU in it")
    kinds = collections.Counter()
    for name, nanoseconds in total.items():
        kinds[kind(name)] += nanoseconds
    busy, end = 0, 0
    for first, last in sorted(spans):
        busy, end = busy + max(0, last - max(first, end)), max(end, last)
    return {
        "span_ms": (end - min(spans)[0]) / 1e6,
        "busy_ms": busy / 1e6,
        "kinds": {name: ns / 1e6 for name, ns in kinds.most_common()},
        "kernels": [[ns / 1e6, count[name], name] for name, ns in total.most_common(400)],
    }


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="kernel_times.py", description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where the trace is")
    parser.add_argument("--top", type=cli.positive, default=15, help="kernels shown one by one")
    parser.add_argument("--out", default="", help="a JSON file")
    args = parser.parse(argv)
    found = kernels(Path(args.folder))
    span = found["span_ms"]
    rows = [*found["kinds"].items(), ("idle", span - found["busy_ms"])]
    for name, ms in rows:
        print(f"{ms:9.2f} ms {100 * ms / span:5.1f} %  {name}")
    for ms, count, name in found["kernels"][: args.top]:
        print(f"{ms:9.2f} ms {100 * ms / span:5.1f} %  {count:6d} x {name[:90]}")
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
