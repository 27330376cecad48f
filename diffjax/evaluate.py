"""Score a run: `python -m diffjax.evaluate --workdir runs/NAME [--num N] [--ref DATA] ...`.

Prints one JSON line: each score with its feature net, its sample counts and its floor, the same
score of real against real. Samples are conditioned as the reference's examples are.
"""

import json
import sys

from diffjax.errors import command
from diffjax.run import cli


@command
def main(argv: list[str]) -> int:
    parser = cli.sampling_parser("diffjax.evaluate", __doc__.split("`")[0], num=1024, batch=128)
    add = parser.add_argument
    add("--ref", default="", help="data to compare with; empty: what the run was trained on")
    add("--split", default="train", help="the split of the reference")
    add("--metrics", default="fd,kid,precision,recall", help="comma-separated; motions have more")
    add(
        "--net", default="emoji", help="feature net: emoji, pixels, inception:FILE; of motions "
        "kinematics (their default) or judge:FILE",
    )  # fmt: skip
    add("--no_cache", action="store_true", help="do not keep the reference's statistics on disk")
    workdir = cli.workdir_of(parser, argv)

    import jax

    from diffjax import systems
    from diffjax.data.sources import open_source
    from diffjax.run import devices, mesh, sampling

    devices.start()
    system, _ = systems.load(workdir)
    args, request = cli.with_request(parser, argv, system.request)
    pick = lambda flag, value, own: value if cli.given(argv, flag) else own
    wanted = pick("--metrics", args.metrics, system.scores[0])
    net = pick("--net", args.net, system.scores[1])
    metrics = [word.strip() for word in wanted.split(",") if word.strip()]
    opened = system.open or open_source
    source = opened(args.ref, args.split) if args.ref else system.data(args.split)
    grid = mesh.make_mesh(mesh.LOCAL)
    # Processes must agree on what is computed, and one might find a cache that another does not.
    cached = not args.no_cache and jax.process_count() == 1
    score = system.evaluate(  # refuses before the sampling, not after
        source, metrics, net,
        sharding=mesh.rows(grid), cache=devices.cache_folder() / "reference" if cached else None,
    )  # fmt: skip

    params, which = sampling.load_params(
        system, workdir, grid, ema=args.ema, step=args.step, request=request
    )
    outputs = sampling.collect(
        system, params, request, num=args.num, seed=args.seed, batch=args.batch, mesh=grid,
        condition=lambda index: system.condition_like(request, source, index), progress=True,
    )  # fmt: skip
    about = {"workdir": str(workdir), "weights": which, "ref": source.name}
    print(json.dumps({**about, "request": vars(request), **score(outputs, args.seed)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
