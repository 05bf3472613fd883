"""libiscsi's conformance suite, `iscsi-test-cu`, held to a checked-in list of skips.

The suite counts a skipped test as passed, so its output is read test by test. What it may skip is
in `tests/libiscsi-skips.txt`; the list is exact both ways. Two URLs of one LUN make its multipath
tests run. Debian's libiscsi 1.19 knows `header_digest` only: data digests are tested by the guest
and by the `login` scenario.
"""

import dataclasses
import re

from harness import TESTS, Failed, check
from targets import Chap, Lun

SKIPS = TESTS / "libiscsi-skips.txt"
SIZE = 100 << 20
# The slowest test (Sanitize.Reset) waits for a minute when sanitizing takes its time.
SUITE_SECONDS = 420


@dataclasses.dataclass
class Outcome:
    """What one test of the suite did."""

    passed: bool
    skip_reason: str
    detail: str


def parse_cunit(text):
    """The outcome of each test as `{"Suite.Test": Outcome}`, from CUnit's verbose output.

    A test whose line has no verdict (the suite died in it) is a failed one.
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
    raise Failed(f"iscsi-test-cu did not reach its summary; last test: {suite}.{name}\n"
                 + "\n".join(text.splitlines()[-20:]))


def allowed_skips(kind):
    """The tests that may, and so must, be skipped on a LUN of this kind."""
    skips = set()
    for line in SKIPS.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            fields = line.split(None, 2)
            check(len(fields) == 3, f"{SKIPS.name}: not 'test kinds reason': {line}")
            if kind in fields[1].split(","):
                skips.add(fields[0])
    return skips


def run_suite(lab, kind, lun, chap=None, query=""):
    """Runs the family ALL against `lun` and compares what it skipped with the list."""
    lab.requires_program("iscsi-test-cu")
    target = lab.target([lun], chap=chap)
    url = target.url(query=query)
    done = lab.run("iscsi-test-cu", "-d", "-S", "-v", "-t", "ALL", url, url,
                   timeout=SUITE_SECONDS, ok=False)
    output = lab.scratch / "iscsi-test-cu.txt"
    output.write_text(done.stdout + done.stderr)
    outcomes = parse_cunit(done.stdout)
    check(len(outcomes) > 200, f"only {len(outcomes)} tests ran")

    skipped = {name for name, outcome in outcomes.items() if outcome.skip_reason}
    allowed = allowed_skips(kind)
    complaints = [f"failed: {name}\n{outcome.detail[:600]}"
                  for name, outcome in outcomes.items() if not outcome.passed]
    complaints += [f"skipped but not listed for {kind}: {name} ({outcomes[name].skip_reason})"
                   for name in sorted(skipped - allowed)]
    complaints += [f"listed as skipped for {kind} but ran: {name}"
                   for name in sorted(allowed - skipped)]
    print(f"     iscsi-test-cu {lab.test_name}: {len(outcomes)} tests, "
          f"{sum(not outcome.passed for outcome in outcomes.values())} failed, "
          f"{len(skipped)} skipped", flush=True)
    check(not complaints, f"{len(complaints)} differences\n" + "\n".join(complaints))
    check(target.alive(), "the target died")


def test_suite_on_a_thin_lun(lab):
    """Everything, plain."""
    run_suite(lab, "thin", Lun(path=lab.image("thin.img", SIZE)))


def test_suite_with_chap(lab):
    """Everything, after a CHAP login."""
    run_suite(lab, "thin", Lun(path=lab.image("thin.img", SIZE)),
              chap=Chap("lab-user", "lab-secret-12"))


def test_suite_with_header_digest(lab):
    """Everything, with CRC32C over each header."""
    run_suite(lab, "thin", Lun(path=lab.image("thin.img", SIZE)), query="?header_digest=crc32c")


def test_suite_on_a_read_only_lun(lab):
    """The write-protection family, and refusals everywhere else."""
    run_suite(lab, "read-only", Lun(path=lab.image("ro.img", SIZE), read_only=True))


def test_suite_on_a_removable_lun(lab):
    """The families about media that can be ejected and locked."""
    run_suite(lab, "removable", Lun(path=lab.image("removable.img", SIZE), removable=True))


def test_suite_on_a_lun_of_4096_byte_blocks(lab):
    """Everything, where a block is not a sector."""
    run_suite(lab, "4k", Lun(path=lab.image("4k.img", SIZE), block_size=4096))
