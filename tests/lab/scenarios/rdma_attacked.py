"""An initiator over RDMA that breaks the rules (`rdma/examples/hostile.rs`), in a Linux guest."""

import pathlib

from rdma_guest import RdmaGuest
from targets import Vscsi


def test_attacked(lab):
    """The RDMA layer connects to itself; then a target is attacked while it serves."""
    lab.requires_program("qemu-system-x86_64", "fio", "rdma", "busybox")
    examples = pathlib.Path(Vscsi.binary).parent / "examples"
    programs = [(str(examples / name), f"/x/{name}") for name in ("selftest", "hostile")]
    RdmaGuest(lab, ["rdma-attacked.sh"], programs=programs).run(seconds=300)
