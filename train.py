"""Train: `python train.py [--config configs/NAME.py] [--workdir runs/NAME] [--config.field=value]`.

The same command resumes. `python train.py --help` lists the flags, the config file the fields.
"""

import contextlib
import os
import sys
from pathlib import Path

from diffjax.errors import UserError, command
from diffjax.run import cli
from diffjax.run.pods import topologies

HERE = Path(__file__).resolve().parent


@command
def main(argv: list[str]) -> int:
    argv, overrides = cli.split_overrides(argv)
    parser = cli.Parser(prog="train.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--config", default=str(HERE / "configs" / "emoji.py"), help="a config file")
    add("--workdir", default="", help="the run directory; empty: runs/ and the config's name")
    add("--init_from", default="", help="fine-tune: a run directory or a .safetensors file")
    add("--dry_run", action="store_true", help="print parameters, FLOPs, memory, shapes; no step")
    add("--compile_for", default="", help="a machine, as v5e:2x2, gpu or cpu: print costs; no step")
    add("--num_slices", type=cli.positive, default=1, help="of --compile_for, joined by a network")
    add("--deterministic", action="store_true", help="the same bits each time on a GPU; slower")
    add("--profile_steps", default="", help="FIRST:LAST step to profile into workdir/profile")
    add("--distributed", default="", help="'auto' on a pod, or HOST:PORT,PROCESSES,INDEX")
    args = parser.parse(argv)
    config = cli.apply_overrides(cli.load_config(args.config), overrides)
    profile = cli.step_range("--profile_steps", args.profile_steps)
    topology = None
    if args.compile_for:
        for flag in ("init_from", "dry_run", "profile_steps", "distributed"):
            if getattr(args, flag):
                raise UserError(f"--{flag}: of a run, and --compile_for makes none")
        topology = topologies.parse(args.compile_for, args.num_slices)
        topologies.prepare(topology)
    elif args.num_slices != 1:
        raise UserError("--num_slices: of --compile_for; training itself asks the machine")
    if args.deterministic:
        flags = "--xla_gpu_exclude_nondeterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

    from diffjax import systems  # JAX is imported after its flags are set
    from diffjax.run import devices, dry_run, loop, run_directory, update

    devices.start(args.distributed)
    workdir = Path(args.workdir or f"runs/{config.name}")
    if args.init_from and Path(args.init_from).resolve() == workdir.resolve():
        raise UserError("--init_from is the workdir itself: the same command resumes without it")
    if topology is not None:
        from diffjax.run.pods import report

        return report.report_all(systems, config, workdir, topology)
    stages = systems.stages(config, workdir)
    if len(stages) > 1 and (args.init_from or profile):
        flag = "--init_from" if args.init_from else "--profile_steps"
        raise UserError(f"{flag}: of one run, and this command trains {len(stages)}")
    with contextlib.ExitStack() as held:
        if len(stages) > 1 and not args.dry_run:  # the last one's directory holds the others'
            lock = run_directory.prepare(*stages[-1], update.OPTIONAL)
            if lock is not None:
                held.enter_context(lock)
        for config, workdir in stages:
            if (config, workdir) == stages[-1]:
                held.close()  # its own training takes it
            system = systems.make(config)
            if system.fit is not None:
                if profile:
                    raise UserError(
                        f"--profile_steps: a {config.system} run has no steps to profile"
                    )
                status = system.fit(workdir, init_from=args.init_from, dry_run=args.dry_run)
            elif args.dry_run:
                return dry_run.report(system, config)
            else:
                how = {"init_from": args.init_from, "profile": profile}
                status = loop.train(system, config, workdir, **how)
            if status:
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
