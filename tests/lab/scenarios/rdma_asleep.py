"""RDMA tests that take minutes, much of which they sleep (`guest/rdma-*.sh`)."""

import json
import re

from cunit import FAILURES, judge, listed, parse_cunit
from harness import Skip, check, check_equal
from rdma_guest import TARGET, RdmaGuest
from targets import NAME

BESIDE = True
# The exit code says that a signal ended the program, or that time did.
CRASHED = 124
# Tests that are not listed and in which libiscsi may die each time.
MOST_DIED = 3


def test_refused_logins(lab):
    """1,000 logins over SRP that are refused: nothing is left of them in the target."""
    lab.requires_program("qemu-system-x86_64", "fio", "busybox", "rdma")
    if lab.target_kind == "tgtd":
        raise Skip("tgtd does not speak SRP")
    RdmaGuest(lab, ["rdma-refused.sh"]).run(seconds=1200)


def test_libiscsi(lab):
    """iscsi-test-cu over iser://, the same tests as over TCP on a thin LUN.

    Over iSER the suite does not survive its own disconnections, so each test has a process.
    """
    lab.requires_program("iscsi-test-cu", "qemu-system-x86_64", "busybox", "rdma")
    names = re.findall(r"^ALL\.(\w+\.\S+)$", lab.run("iscsi-test-cu", "--list").stdout, re.MULTILINE)
    calls = [f"ALL.{name}" for name in names]
    # The settings of the `libiscsi` scenario, and no immediate data: libiscsi 1.19 says that it
    # sends some, and does not. LUN 1 is for what takes long on the other one: over iSER libiscsi waits
    # a second.
    config = {
        "state_dir": "/dev/shm/state",
        "portal_groups": [{"tag": 1, "listen": [], "iser": [f"{TARGET}:3260"]}],
        "iscsi": {"ping_after": 90, "immediate_data": False},
        "targets": [{"name": NAME, "allow_any": True, "luns": [{
            "file": "/dev/shm/disk.img", "physical_block_size": 512, "erase_rate": "12M",
        }, {"ram": "4M", "physical_block_size": 512}]}],
    }
    RdmaGuest(lab, ["rdma-test-cu.sh"], {
        "TESTS": " ".join(calls), "IMAGE_SIZE": 100 << 20, "CONFIG": json.dumps(config),
    }).run(seconds=2400)

    console = (lab.scratch / "console-0.log").read_text(errors="replace").replace("\r", "")
    # A message of the C library's comes without a line of its own.
    console = re.sub(r"\b(passed|FAILED)(?=[a-z])", r"\1\n", console)
    outcomes, called, crashed = {}, [], set()
    for part in re.split(r"^TESTS ", console, flags=re.MULTILINE)[1:]:
        tests, _, output = part.partition("\n")
        called.append(tests)
        name = tests.removeprefix("ALL.")
        # What the console has behind it is not the test's.
        end = re.search(r"^EXIT (\d+)", output, re.MULTILINE)
        code, output = int(end[1]), output[:end.start()]
        if "Test: " in output:
            # There is one test, and what libiscsi says of itself may take the line of its suite.
            outcomes[name] = [*parse_cunit(output, may_end_early=True).values()][-1]
        if code >= CRASHED and (name not in outcomes or not outcomes[name].passed):
            crashed.add(name)
    check_equal(called, calls, "calls of iscsi-test-cu")
    # Whether a test that uses memory it gave back dies or fails of that is a matter of luck.
    passed = {name for name, outcome in outcomes.items() if outcome.passed}
    excused = listed(FAILURES, "iser-crash") - passed
    outcomes = {name: outcome for name, outcome in outcomes.items() if name not in excused}
    # As many times as a test is begun, libiscsi may die in it before it has a verdict: that says
    # nothing of the target, but more than a few of these would.
    died = crashed - excused
    print(f"     libiscsi died in {len(died)} tests that are not listed: {' '.join(sorted(died))}")
    check(len(died) <= MOST_DIED, f"libiscsi died in {len(died)} tests")
    excused |= died
    outcomes = {name: outcome for name, outcome in outcomes.items() if name not in excused}
    check_equal(sorted(set(names) - outcomes.keys() - excused), [], "tests that did not run")
    check(len(outcomes) > 200, f"only {len(outcomes)} tests ran")
    judge(lab, "iser", outcomes)
