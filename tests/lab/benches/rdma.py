"""The program against tgtd and the kernel's target over soft-RoCE, in one guest, in turn.

The guest is emulated, so that only ratios mean something. `$ROUNDS` and `$SECONDS_EACH` say how long
it takes, `$KINDS` which targets.
"""

import collections
import os
import statistics

from rdma_guest import RdmaGuest

KINDS = os.environ.get("KINDS", "vscsi tgtd lio").split()


def bench_peers(lab):
    """4 KiB and 128 KiB reads and writes at depth 16, over iSER and SRP: medians, and ratios."""
    lab.requires_program("qemu-system-x86_64", "fio", "iscsid", "busybox", "rdma")
    figures = collections.defaultdict(list)

    def result(fabric, row, kind, number):
        figures[fabric, row, kind].append(float(number))
        return "noted"

    rounds, seconds = (int(os.environ.get(name, usual))
                       for name, usual in (("ROUNDS", 5), ("SECONDS_EACH", 3)))
    variables = {"KINDS": " ".join(KINDS), "ROUNDS": rounds, "SECONDS_EACH": seconds,
                 "DISK": "--ram 128M"}
    RdmaGuest(lab, ["rdma-bench.sh"], variables, {"result": result}, kinds=KINDS).run(
        seconds=300 + rounds * 20 * (seconds + 5))
    _print(figures)


def _print(figures):
    first, *peers = KINDS
    print(f"| job | {first}, commands a second | " + " | ".join(
        f"{peer} | ratio (least, most)" for peer in peers) + " |")
    print("|---" * (2 + 2 * len(peers)) + "|")
    for fabric, row in dict.fromkeys((fabric, row) for fabric, row, _ in figures):
        ours = figures.get((fabric, row, first), [])
        cells = [f"{fabric} {row}", f"{statistics.median(ours):.0f}" if ours else ""]
        for peer in peers:
            theirs = figures.get((fabric, row, peer))
            if not ours or not theirs or 0 in theirs:
                cells += ["", ""]
                continue
            # Of one round each: what disturbs it disturbs both.
            ratios = [mine / other for mine, other in zip(ours, theirs)]
            cells += [f"{statistics.median(theirs):.0f}",
                      f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"]
        print("| " + " | ".join(cells) + " |", flush=True)
