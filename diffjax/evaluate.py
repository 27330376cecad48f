"""Score a run: `python -m diffjax.evaluate --workdir runs/NAME [--num N] [--ref DATA] ...`.

Prints one JSON line: each score with its feature net, its sample counts and its floor, the same
score of real against real. Samples are conditioned as the reference's examples are.
"""

import json
import sys
from pathlib import Path

from diffjax.errors import command
from diffjax.run import cli


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="diffjax.evaluate", description=__doc__.split("`")[0], add_help=False)
    add = parser.add_argument
    add("--workdir", default="runs/emoji", help="a run directory")
    add("--num", type=cli.positive, default=1024, help="how many samples to make")
    add("--ref", default="", help="data to compare with; empty: what the run was trained on")
    add("--split", default="train", help="the split of the reference")
    add("--metrics", default="fd,kid,precision,recall", help="comma-separated")
    add("--net", default="emoji", help="feature net")
    add("--seed", type=int, default=0, help="sample s is made of (seed, s)")
    add("--batch", type=cli.positive, default=128, help="how many at a time, of all devices together")
    add("--ema", default="", help="which EMA; empty: the first; none: raw weights")
    add("--step", type=int, default=-1, help="the checkpoint of this step; -1: the newest")
    workdir = Path(parser.parse_known_args(argv)[0].workdir)

    from diffjax import systems
    from diffjax.data.sources import open_source
    from diffjax.run import devices, mesh, sampling

    devices.start()
    system, config = systems.load(workdir)
    cli.add_request_flags(parser, system.request)
    add("--help", "-h", action="help", help="this list")
    args = parser.parse(argv)
    request = cli.read_request(args, system.request)
    metrics = [word.strip() for word in args.metrics.split(",") if word.strip()]
    source = open_source(args.ref, args.split) if args.ref else system.data(args.split)
    score = system.evaluate(source, metrics, args.net)  # refuses before the sampling, not after

    grid = mesh.make_mesh(mesh.LOCAL)
    params, which = sampling.load_params(system, workdir, grid, ema=args.ema, step=args.step)
    outputs = sampling.collect(
        system, params, request, num=args.num, seed=args.seed, batch=args.batch, mesh=grid,
        condition=lambda index: system.condition_like(request, source, index), progress=True,
    )  # fmt: skip
    about = {"workdir": str(workdir), "weights": which, "request": vars(request), "ref": source.name}
    print(json.dumps({**about, **score(outputs, args.seed)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
