"""`make bench`: run what is compared in turn, one process at a time; a table per task, and docs/benchmarks.md."""

import argparse
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from benchmarks.against import compare, overhead, resnet34, template
from benchmarks.alone import augmentation, ranks, scaling, startup, streaming
from benchmarks.processes import BenchError, run
from benchmarks.report import Section, write

MEASURES: dict[str, Callable[[str, argparse.Namespace], Section]] = {
    "softmax": compare,
    "mlp": compare,
    "lenet": compare,
    "lenet_cifar": compare,
    "template": template,
    "overhead": overhead,
    "resnet34": resnet34,
    "startup": startup,
    "scaling": scaling,
    "ranks": ranks,
    "streaming": streaming,
    "augmentation": augmentation,
}


def measured_on(args: argparse.Namespace) -> str:
    """Return two lines on the machine, the versions and the time."""
    load = os.getloadavg()[0]
    about = run(["-m", "benchmarks.probes", f"--device={args.device}", "machine"]).result
    git = about["git"] or {"commit": "no commit", "dirty": False}
    cores = f"{about['cores']} cores, {about['threads']} threads"
    versions = ", ".join(f"{name} {about['versions'][name]}" for name in ("python", "torch", "torchvision"))
    commit = git["commit"][:10] + (" with changes" if git["dirty"] else "")
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d %H:%M} UTC at {commit}: {about['cpu']}, {cores},\n"
        f"{about['gpu'] or 'no GPU'}, {versions}; load average {load:.1f} at the start."
    )


def main() -> int:
    """Run the tasks of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("tasks", nargs="*", help=f"{', '.join(MEASURES)}; default: all of them")
    parser.add_argument("--rounds", type=int, help="rounds of every task, instead of its own number")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--data", default="datasets", help="folder of the MNIST sets")
    parser.add_argument("--cifar", help="folder of CIFAR-10 (default: that of --data)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--lightning-w2", action="store_true", help="Lightning with two workers too")
    args = parser.parse_args()
    if unknown := [name for name in args.tasks if name not in MEASURES]:
        parser.error(f"unknown task {unknown[0]}; allowed: {', '.join(MEASURES)}")
    args.rounds = 1 if args.quick else args.rounds
    args.cifar = args.cifar or args.data
    failed = 0
    for name in args.tasks or MEASURES:
        print(f"\n{name}", flush=True)
        try:
            where = measured_on(args)
            section = MEASURES[name](name, args)
        except BenchError as error:
            print(f"failed: {error}", file=sys.stderr)
            failed += 1
            continue
        print(f"{section.text()}\n\n{where}", flush=True)
        write(section, where, order=list(MEASURES))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
