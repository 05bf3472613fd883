"""A Linux guest with a soft-RoCE device: target and initiators in it, or one of the two.

The target is the program under test, or Debian's tgtd or the kernel's own (LIO) in its place; how
each is started is known to `guest/rdma-targets.sh`.
"""

import pathlib
import threading

import guest
import qemu
from harness import check, wait_until
from targets import Vscsi

TARGET, TARGET_MAC = "10.9.0.1", "52:54:00:00:00:01"
INITIATOR, INITIATOR_MAC = "10.9.0.2", "52:54:00:00:00:02"
# What SRP makes of that address.
INITIATOR_PORT = "0x0000000000000000505400fffe000002"
BOOT_SECONDS = 120
PROVIDERS = "/usr/lib/x86_64-linux-gnu/libibverbs"
PROGRAMS = ("rdma", "iscsi-inq", "iscsi-ls", "e2fsck")
MODULES = (
    "crc32_generic", "udp_tunnel", "ip6_udp_tunnel", "dummy", "ib_core", "ib_uverbs", "rdma_rxe",
    "virtio_net", "configfs", "ib_cm", "iw_cm", "rdma_cm", "rdma_ucm", "ib_iser", "ib_srp",
)
# What the kernel's own targets are made of.
LIO_MODULES = ("target_core_mod", "iscsi_target_mod", "ib_isert", "ib_srpt")


def kit(peers=()):
    """What a guest needs for RDMA, and for these other targets."""
    drivers = list(pathlib.Path(PROVIDERS).glob("librxe-rdmav*.so"))
    check(drivers, "ibverbs-providers is not installed")
    libraries = sorted(pathlib.Path("/usr/lib/x86_64-linux-gnu").glob("lib*.so.1"))
    # Looked up at run time, so ldd does not name them.
    verbs = [path for path in libraries if path.name in ("librdmacm.so.1", "libibverbs.so.1")]
    check(len(verbs) == 2, "librdmacm1 or libibverbs1 is not installed")
    files = [(str(path), str(path)) for path in (*drivers, *verbs)]
    files.append(("/etc/libibverbs.d/rxe.driver", "/etc/libibverbs.d/rxe.driver"))
    if "tgtd" in peers:
        tgt = qemu.download_package("tgt")
        files += [(str(tgt / f"usr/sbin/{name}"), f"/usr/sbin/{name}")
                  for name in ("tgtd", "tgtadm")]
    modules = (*MODULES, *(LIO_MODULES if "lio" in peers else ()))
    return guest.Kit(PROGRAMS, modules, tuple(files))


class RdmaGuest(guest.Guest):
    """A guest whose steps find `rdma-lib.sh` and the target of this kind, which its job names."""

    MEBIBYTES = 1536

    def __init__(self, lab, files, variables=None, requests=None, *, kinds=None, programs=(),
                 **options):
        kinds = kinds or (lab.target_kind,)
        self.KIT = kit(kinds)
        extras = [(Vscsi.binary, "/x/vscsi")] if "vscsi" in kinds else []
        extras += programs
        super().__init__(lab, ["rdma-lib.sh", "rdma-targets.sh", *files],
                         {"KIND": kinds[0], **(variables or {})}, requests or {},
                         extras=extras, **options)


def pair(lab, target_files, initiator_files, capture, seconds, **options):
    """A target in one guest, its initiators in another one: returns when both are off.

    The target tells `HOST serving LINE` how it is found over SRP, and asks for the initiator's end by
    `HOST initiator-ended`; that one gets the line by `HOST target-serves`. QEMU keeps what crosses
    the wire between them in `capture`.
    """
    wire = lab.scratch / "wire.sock"
    serves, ended = threading.Event(), threading.Event()
    line = []

    def serving(*words):
        line.extend(words)
        serves.set()

    def target_serves():
        check(serves.wait(BOOT_SECONDS) and line, "the target does not serve")
        return " ".join(line)

    def initiator_ended():
        ended.wait(seconds)

    variables = {"IP": TARGET, "SRP_INITIATOR": INITIATOR_PORT}
    listening = RdmaGuest(
        lab, target_files, {**variables, "SELF": TARGET, "SRP_ALLOW": INITIATOR},
        {"serving": serving, "initiator-ended": initiator_ended},
        arguments=[*_wire(wire, "on", TARGET_MAC), "-object",
                   f"filter-dump,id=capture,netdev=wire,file={capture}"],
        name="target", **options)
    connecting = RdmaGuest(
        lab, initiator_files, {**variables, "SELF": INITIATOR},
        {"target-serves": target_serves}, arguments=_wire(wire, "off", INITIATOR_MAC),
        name="initiator", **options)

    faults = []

    def run_target():
        try:
            listening.run(seconds)
        except Exception as error:  # told to the test, whose thread is another one
            faults.append(error)
        finally:
            # Nobody waits for it any more.
            serves.set()

    thread = threading.Thread(target=run_target, daemon=True)
    thread.start()
    try:
        wait_until(lambda: wire.exists() or faults, 20, "QEMU listens for the other guest")
        connecting.run(seconds)
    finally:
        ended.set()
        thread.join()
    if faults:
        raise faults[0]


def _wire(socket, is_server, mac):
    return ["-netdev", f"stream,id=wire,server={is_server},addr.type=unix,addr.path={socket}",
            "-device", f"virtio-net-pci,netdev=wire,host_mtu=4500,romfile=,mac={mac}"]
