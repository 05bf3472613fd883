"""What became of libiscsi's tests: read from CUnit's output, and held to the checked-in lists."""

import dataclasses
import re

from harness import TESTS, Failed, check

SKIPS = TESTS / "libiscsi-skips.txt"
FAILURES = TESTS / "libiscsi-failures.txt"


@dataclasses.dataclass
class Outcome:
    """What one test of the suite did."""

    passed: bool
    skip_reason: str
    detail: str


def parse_cunit(text, may_end_early=False):
    """The outcome of each test as `{"Suite.Test": Outcome}`, from CUnit's verbose output.

    A test whose line has no verdict (the suite died in it) is a failed one, and the last.
    """
    outcomes = {}
    suite = name = None
    lines = []

    def finish():
        if name is None:
            return
        block = "\n".join(lines)
        skips = re.findall(r"\[SKIPPED\]\s*(.*)", block)
        verdict = re.search(r"(?:^|\.\.\.)(passed|FAILED)\b", block, re.MULTILINE)
        passed = verdict is not None and verdict[1] == "passed"
        outcomes[f"{suite}.{name}"] = Outcome(passed, skips[0].strip() if skips else "", block)

    for line in text.splitlines():
        started = re.match(r"\s*Test: (\S+) \.\.\.(.*)", line)
        if started:
            finish()
            name, lines = started[1], ["..." + started[2]]
        elif line.startswith("Suite: "):
            finish()
            suite, name = line.removeprefix("Suite: ").strip(), None
        elif line.startswith("Run Summary"):
            finish()
            return outcomes
        else:
            lines.append(line)
    finish()
    if may_end_early and name is not None:
        return outcomes
    raise Failed(f"iscsi-test-cu did not reach its summary; last test: {suite}.{name}\n"
                 + "\n".join(text.splitlines()[-20:]))


def listed(path, kind):
    """The tests that may, and so must, be skipped or fail on a LUN of this kind."""
    names = set()
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            fields = line.split(None, 2)
            check(len(fields) == 3, f"{path.name}: not 'test kinds reason': {line}")
            if kind in fields[1].split(","):
                names.add(fields[0])
    return names


def judge(lab, kind, outcomes):
    """Compares what failed and what was skipped on a LUN of this kind with the lists."""
    skipped = {name for name, outcome in outcomes.items() if outcome.skip_reason}
    allowed = listed(SKIPS, kind)
    failed = {name for name, outcome in outcomes.items() if not outcome.passed}
    excused = listed(FAILURES, kind)
    complaints = [f"failed: {name}\n{outcomes[name].detail[:600]}"
                  for name in sorted(failed - excused)]
    complaints += [f"listed as failing for {kind} but passed: {name}"
                   for name in sorted(excused - failed)]
    complaints += [f"skipped but not listed for {kind}: {name} ({outcomes[name].skip_reason})"
                   for name in sorted(skipped - allowed)]
    complaints += [f"listed as skipped for {kind} but ran: {name}"
                   for name in sorted(allowed - skipped)]
    print(f"     iscsi-test-cu {lab.test_name}: {len(outcomes)} tests, {len(failed)} failed, "
          f"{len(skipped)} skipped", flush=True)
    check(not complaints, f"{len(complaints)} differences\n" + "\n".join(complaints))
