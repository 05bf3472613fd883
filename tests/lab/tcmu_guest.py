"""A Linux guest whose own kernel target (LIO) has backstores in user space, reached by its loopback
fabric. What serves them is the program under test, or Debian's tcmu-runner beside it."""

import guest
import qemu
from targets import Vscsi

PROGRAMS = ("e2fsck", "sg_modes", "sg_raw", "sg_sync", "sg_unmap", "sg_wr_mode", "sg_write_same")
MODULES = ("configfs", "uio", "target_core_mod", "target_core_user", "tcm_loop",
           "iscsi_target_mod")
LIBRARIES = "/usr/lib/x86_64-linux-gnu"


def kit(runner=False):
    """What a guest needs, and tcmu-runner with its handler of raw images if that is wanted."""
    files = []
    if runner:
        program, library = (qemu.download_package(name) for name in ("tcmu-runner", "libtcmu2"))
        handler = "usr/lib/x86_64-linux-gnu/tcmu-runner/handler_qcow.so"
        files = [
            (str(program / "usr/bin/tcmu-runner"), "/usr/bin/tcmu-runner"),
            (str(program / handler), f"/{handler}"),
            (str(library / "usr/lib/x86_64-linux-gnu/libtcmu.so.2.2"), f"{LIBRARIES}/libtcmu.so.2"),
        ]
    return guest.Kit(PROGRAMS, (*MODULES, *(["brd"] if runner else [])), tuple(files))


class TcmuGuest(guest.Guest):
    """A guest whose steps find `tcmu-lib.sh`."""

    def __init__(self, lab, files, variables=None, requests=None, *, runner=False, **options):
        self.KIT = kit(runner)
        super().__init__(lab, ["tcmu-lib.sh", *files], variables or {}, requests or {},
                         extras=[(Vscsi.binary, "/x/vscsi")], **options)
