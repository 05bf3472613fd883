"""iSER and SRP over soft-RoCE in Linux guests: ib_iser, ib_srp and libiscsi (`guest/rdma-*.sh`)."""

from harness import Skip
from guest import backported_kernel
from rdma_guest import RdmaGuest, pair


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


def _requires(lab):
    lab.requires_program("qemu-system-x86_64", "fio", "iscsid", "sg_persist", "busybox", "rdma")
