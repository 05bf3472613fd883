"""Tests a target with clients that others wrote: `python3 tests/lab [--target KIND] [PATTERN…]`.

The target is the `vscsi` binary named by $VSCSI (target/release/vscsi when unset). `--target tgtd`
puts Debian's tgtd in its place, which shows whether a failure is the lab's own.
"""

import argparse
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import harness  # noqa: E402
import targets  # noqa: E402


def main():
    """Runs the chosen tests; exits 1 when one failed, or was skipped under --no-skips."""
    parser = argparse.ArgumentParser(prog="tests/lab", description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", metavar="PATTERN",
                        help="run only tests whose name contains it")
    parser.add_argument("--target", choices=sorted(targets.KINDS), default="vscsi")
    parser.add_argument("--bench", action="store_true",
                        help="measure, which no test does, with what is in benches/")
    parser.add_argument("--no-skips", action="store_true", help="a skipped test is a failure")
    options = parser.parse_args()

    # Ended from outside, a test still stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    where = ("benches", "bench_") if options.bench else ("scenarios", "test_")
    runner = harness.Runner(targets.KINDS[options.target], options.target, *where)
    runner.run(options.patterns)
    counts = runner.counts
    print(f"lab: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    if counts["failed"] or (options.no_skips and counts["skipped"]):
        return 1
    if not any(counts.values()):
        print(f"lab: no test matches {' '.join(options.patterns)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
