"""Sample: `python sample.py --workdir runs/NAME [--num N] [--steps K] [--guidance W] [--cond ...]`.

Sample s depends on (seed, s) alone. `python sample.py --workdir runs/NAME --help` lists the flags
that the run's system takes.
"""

import sys
from pathlib import Path

from diffjax.errors import command
from diffjax.run import cli


@command
def main(argv: list[str]) -> int:
    parser = cli.Parser(prog="sample.py", description=__doc__.splitlines()[0], add_help=False)
    add = parser.add_argument
    add("--workdir", default="runs/emoji", help="a run directory")
    add("--num", type=cli.positive, default=80, help="how many samples")
    add("--seed", type=int, default=0, help="sample s is made of (seed, s)")
    add("--batch", type=cli.positive, default=80, help="how many at a time, of all devices together")
    add("--out", default="", help="PATH.png a picture, PATH.npz arrays, PATH/ single files")
    add("--ema", default="", help="which EMA; empty: the first; none: raw weights")
    add("--step", type=int, default=-1, help="the checkpoint of this step; -1: the newest")
    workdir = Path(parser.parse_known_args(argv)[0].workdir)

    from diffjax import systems
    from diffjax.run import devices, mesh, sampling

    devices.start()
    system, config = systems.load(workdir)
    cli.add_request_flags(parser, system.request)
    add("--help", "-h", action="help", help="this list")
    args = parser.parse(argv)
    request = cli.read_request(args, system.request)
    grid = mesh.make_mesh(mesh.LOCAL)
    params, which = sampling.load_params(system, workdir, grid, ema=args.ema, step=args.step)
    out = Path(args.out or workdir / "samples" / f"seed_{args.seed}{system.suffix}")
    outputs = sampling.collect(
        system, params, request, num=args.num, seed=args.seed, batch=args.batch, mesh=grid,
        progress=True,
    )  # fmt: skip
    print(f"{sampling.save(system, outputs, out)} ({workdir}, {which})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
