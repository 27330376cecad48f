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
    how_many = "how many samples; without it, of own pictures to start from or of texts one each"
    parser = cli.sampling_parser(
        "sample.py", __doc__.splitlines()[0], num=80, batch=80, help_num=how_many
    )
    parser.add_argument(
        "--out",
        default="",
        help="PATH.png (of films, motions, worlds .gif, .mp4) a picture, PATH.npz arrays, "
        "PATH/ files",
    )
    parser.add_argument("--play", action="store_true", help="play by hand, in a browser")
    parser.add_argument("--port", type=int, default=8000, help="of --play; 0: any that is free")
    workdir = cli.workdir_of(parser, argv)

    from diffjax import systems
    from diffjax.run import devices, mesh, play, sampling

    devices.start()
    system, _ = systems.load(workdir)
    args, request = cli.with_request(parser, argv, system.request)
    grid = mesh.make_mesh(mesh.LOCAL)
    sampling.check_seed(args.seed)
    out = Path(args.out) if args.out else sampling.place_for(system, workdir, args.seed)
    sampling.check_out(system, out, None if args.play else request)
    params, which = sampling.load_params(
        system, workdir, grid, ema=args.ema, step=args.step, request=request
    )
    if args.play:
        play.serve(**play.checked(system)(params, request, args.seed), port=args.port)
        return 0
    num = args.num if cli.given(argv, "--num") else sampling.own(system, request) or args.num
    outputs = sampling.collect(
        system, params, request, num=num, seed=args.seed, batch=args.batch, mesh=grid,
        progress=True,
    )  # fmt: skip
    print(f"{sampling.save(system, outputs, out)} ({workdir}, {which})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
