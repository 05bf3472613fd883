"""RDMA tests that spend their time asleep (`guest/rdma-*.sh`)."""

from harness import Skip
from rdma_guest import RdmaGuest

BESIDE = True


def test_refused_logins(lab):
    """1,000 logins over SRP that are refused: nothing is left of them in the target."""
    lab.requires_program("qemu-system-x86_64", "fio", "busybox", "rdma")
    if lab.target_kind == "tgtd":
        raise Skip("tgtd does not speak SRP")
    RdmaGuest(lab, ["rdma-refused.sh"]).run(seconds=900)
