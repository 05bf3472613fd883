"""libiscsi's suite in a guest: `iscsi-test-cu` on /dev/sg* of a vhost-user LUN.

It is the list of tests that `libiscsi` runs over iSCSI. Those that need a session of libiscsi's own
are skipped there, and those that forget to ask crash: both lists know this LUN as the kind `sg`.
"""

import re

import vhost_backend
import vhost_guest
from cunit import judge, parse_cunit
from harness import check, check_equal

# Tests that may crash take what follows them along, so they run alone.
ALONE = ("Sanitize", "MultipathIO")
# It expects zeroes in a block that it forgot to write, so it finds the image as new as it was made.
FIRST = "ALL.MultipathIO.CompareAndWrite"
SECONDS = 400


def plan(lab):
    """The names of all tests, and what to give iscsi-test-cu, call by call."""
    names = re.findall(r"^ALL\.(\w+)\.(\S+)$", lab.run("iscsi-test-cu", "--list").stdout,
                       re.MULTILINE)
    calls = [f"ALL.{suite}.{test}" if suite in ALONE else f"ALL.{suite}" for suite, test in names]
    return {f"{suite}.{test}" for suite, test in names}, list(dict.fromkeys([FIRST, *calls]))


def test_suite_on_sg_devices(lab):
    """Everything, on a thin LUN behind two controllers: the second is for multipath tests."""
    lab.requires_program("iscsi-test-cu", "qemu-system-x86_64")
    names, calls = plan(lab)
    image = lab.image("thin.img", 100 << 20)
    sockets = [lab.scratch / "first.sock", lab.scratch / "second.sock"]
    backend = vhost_backend.start(lab, [
        "serve", f"{image},pbs=512", "--vhost-user", sockets[0],
        "--vhost-user", sockets[1], "--state-dir", "none", "--control", "none"], sockets)
    guest = vhost_guest.VhostGuest(
        lab, vhost_guest.installed(), ["test-cu.sh"], {"TESTS": " ".join(calls)}, {},
        [vhost_guest.Controller(socket) for socket in sockets])
    guest.run(seconds=SECONDS)

    console = (lab.scratch / "console-0.log").read_text(errors="replace").replace("\r", "")
    outcomes, called = {}, []
    for part in re.split(r"^TESTS ", console, flags=re.MULTILINE)[1:]:
        tests, _, output = part.partition("\n")
        called.append(tests)
        outcomes |= parse_cunit(output, may_end_early=True)
    check_equal(called, calls, "calls of iscsi-test-cu")
    check_equal(sorted(names - outcomes.keys()), [], "tests that did not run")
    judge(lab, "sg", outcomes)
    check(backend.alive(), "the back end died")
