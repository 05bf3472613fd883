"""iSER and SRP over soft-RoCE in Linux guests: ib_iser, ib_srp and libiscsi (`guest/rdma-*.sh`)."""

import collections
import shutil

from guest import backported_kernel
from harness import Skip, check, check_equal
from rdma_capture import SRP_CMD, check_iser, check_srp, conversations, dissected
from rdma_guest import RdmaGuest, pair

SRP_PORT = 5555
# The data that Linux has room for in what a target sends after the login.
POSTED = 128


def test_iser(lab):
    """open-iscsi over iSER: discovery, file system, TCP beside it, restarts under I/O, CHAP."""
    _requires(lab)
    RdmaGuest(lab, ["rdma-iser.sh"]).run(seconds=400)


def test_srp(lab):
    """ib_srp: 1 and 2 channels, every kind of table, resets, aborts, restarts, refused logins."""
    _requires(lab)
    if lab.target_kind == "tgtd":
        raise Skip("tgtd does not speak SRP")
    RdmaGuest(lab, ["rdma-srp.sh"]).run(seconds=400)


def test_two_guests(lab):
    """Initiators and target on a wire between two guests, with a newer kernel."""
    _requires(lab)
    if lab.target_kind == "tgtd":
        raise Skip("tgtd does not speak SRP")
    capture = lab.scratch / "wire.pcap"
    pair(lab, ["rdma-far-target.sh"], ["rdma-far-initiator.sh"], capture, seconds=300,
         boots=backported_kernel())
    if not lab.has_failed_step:
        _check_capture(lab, capture)


def _check_capture(lab, capture):
    found = conversations(capture)
    iser = [one for one in found if one.port != SRP_PORT]
    srp = [one for one in found if one.port == SRP_PORT]
    # A discovery and a login.
    check_equal(len(iser), 2, "connections over iSER")
    for one in iser:
        check_iser(one, POSTED)
    pdus = sum(len(one.messages) for one in iser)
    lab.step("capture/iser", "ok", f"{pdus} messages")

    counts = sum(map(check_srp, srp), collections.Counter())
    forms = ["direct", "indirect", "immediate"] + ["external"] * (lab.target_kind != "lio")
    for form in forms:
        check(counts[form] > 10, f"only {counts[form]} commands with {form} data over SRP")
    said = ", ".join(f"{counts[form]} {form}" for form in forms)
    lab.step("capture/srp", "ok", f"{len(srp)} channels, {counts[SRP_CMD]} commands: {said}")

    if shutil.which("tshark") is None:
        lab.step("capture/tshark", "SKIP", "tshark is not installed")
        return
    told = dissected(lab, capture, iser[0].port)
    check(told >= pdus, f"tshark finds {told} PDUs of {pdus}")
    lab.step("capture/tshark", "ok", f"{told} PDUs over iSER, all well-formed")


def _requires(lab):
    lab.requires_program("qemu-system-x86_64", "fio", "iscsid", "sg_persist", "busybox", "rdma")
