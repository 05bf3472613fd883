"""The program against tcmu-runner behind the kernel's loopback fabric, in one guest, in turn.

The guest is emulated, so that only ratios mean something. `$ROUNDS` and `$SECONDS_EACH` say how long
it takes. tcmu-runner serves a raw image by its handler `qcow`.
"""

import collections
import os
import statistics

from tcmu_guest import TcmuGuest

KINDS = ("vscsi", "runner")


def bench_runner(lab):
    """4 KiB and 128 KiB reads and writes at depth 16, and 4 KiB at depth 1: medians, and ratios."""
    lab.requires_program("qemu-system-x86_64", "fio", "busybox")
    figures = collections.defaultdict(list)

    def result(row, kind, number):
        figures[row, kind].append(float(number))
        return "noted"

    rounds, seconds = (int(os.environ.get(name, usual))
                       for name, usual in (("ROUNDS", 5), ("SECONDS_EACH", 3)))
    variables = {"ROUNDS": rounds, "SECONDS_EACH": seconds, "KINDS": " ".join(KINDS)}
    TcmuGuest(lab, ["tcmu-bench.sh"], variables, {"result": result}, runner=True).run(
        seconds=300 + rounds * 12 * (seconds + 5))
    _print(figures)


def _print(figures):
    print("| job | vscsi, commands a second | tcmu-runner | ratio (least, most) |")
    print("|---|---|---|---|")
    for row in dict.fromkeys(row for row, _ in figures):
        ours, theirs = (figures[row, kind] for kind in KINDS)
        # Of one round each: what disturbs it disturbs both.
        ratios = [mine / other for mine, other in zip(ours, theirs) if other]
        if ratios:
            print(f"| {row} | {statistics.median(ours):.0f} | {statistics.median(theirs):.0f} | "
                  f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f}) |",
                  flush=True)
