"""Many vhost-user-scsi controllers in one process, each with LUNs of its own; no guest."""

import contextlib
import json
import time

import vhost_backend
from frontend import Frontend
from harness import check, check_equal
from targets import Vscsi

CONTROLLERS, LUNS = 100, 10
QUEUES = 4
# Control and event queue.
OTHER_RINGS = 2
IDLE_SECONDS = 5
MIB = 1 << 20
# Far above what is measured here: they catch a controller that costs a page of buffers a ring or a
# timer that ticks.
START_SECONDS, RESIDENT, CPU_SHARE = 20, 512 * MIB, 0.01


def configuration(lab, sockets):
    """A file with a controller on each socket; every controller has a target of its own."""
    names = [f"iqn.2026-11.net.example:vm{number}" for number in range(len(sockets))]
    path = lab.scratch / "controllers.json"
    path.write_text(json.dumps({
        "control": str(lab.scratch / "control.sock"), "state_dir": str(lab.scratch / "state"),
        "targets": [{"name": name, "luns": [{"ram": "16M"} for _ in range(LUNS)]}
                    for name in names],
        "vhost_user": [{"socket": str(socket), "queues": QUEUES,
                        "targets": [{"id": 0, "target": name}]}
                       for socket, name in zip(sockets, names)],
    }))
    return path


def test_a_hundred_controllers_in_one_process(lab):
    """100 controllers with 10 LUNs each start soon, are small, all answer, idle for nothing."""
    sockets = [lab.scratch / f"vm{number}.sock" for number in range(CONTROLLERS)]
    path = configuration(lab, sockets)
    began = time.monotonic()
    backend = vhost_backend.start(lab, ["serve", "--config", path], sockets)
    started = time.monotonic() - began
    with contextlib.ExitStack() as stack:
        for socket in sockets:
            frontend = stack.enter_context(Frontend(socket))
            rings = frontend.introduce()
            check(rings >= QUEUES + OTHER_RINGS, f"{socket.name} has {rings} rings")
        answered = time.monotonic() - began
        time.sleep(1)
        before = backend.cpu_seconds()
        time.sleep(IDLE_SECONDS)
        idle = (backend.cpu_seconds() - before) / IDLE_SECONDS
        resident, threads = backend.resident_bytes(), backend.threads()
        listed = json.loads(lab.run(Vscsi.binary, "lun", "list", "--json", "--control",
                                    lab.scratch / "control.sock").stdout)
    began = time.monotonic()
    check_equal(backend.stop(), 0, "exit code on SIGTERM")
    ended = time.monotonic() - began

    check_equal(len(listed), CONTROLLERS * LUNS, "LUNs listed")
    check(answered < START_SECONDS, f"{answered:.1f} s until all controllers answered")
    check(resident < RESIDENT, f"{resident >> 20} MiB resident")
    check(idle < CPU_SHARE, f"{100 * idle:.1f} % of a core while idle")
    lab.step("measured", "ok", f"{CONTROLLERS} controllers with {LUNS} LUNs: start "
             f"{started:.2f} s, all answered after {answered:.2f} s, {resident / MIB:.1f} MiB "
             f"resident, {threads} threads, {100 * idle:.2f} % of a core idle, end {ended:.2f} s")
