"""What QEMU's conventions ask of a vhost-user back end program, as a management layer uses it."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess

import vhost_backend
from frontend import Frontend
from harness import CHECKOUT, check, check_equal, wait_until
from targets import Vscsi

MIB = 1 << 20
QUEUES = 3
# Control and event queue.
OTHER_RINGS = 2
USAGE = 2
DESCRIPTOR = CHECKOUT / "packaging/50-vscsi-vhost-user-scsi.json"
PLAIN = ("--state-dir", "none", "--queues", QUEUES)


def program(lab, *words, ok=True):
    """Runs the back end to its end."""
    lab.requires_vscsi("vhost-user-scsi")
    return lab.run(Vscsi.binary, "vhost-user-scsi", *words, ok=ok, timeout=20)


def introduce(frontend):
    """Asks the first questions, and checks that the rings are those of the command line."""
    rings = frontend.introduce()
    check(rings >= QUEUES + OTHER_RINGS, f"{rings} rings, {QUEUES + OTHER_RINGS} are needed")


def test_print_capabilities(lab):
    """--print-capabilities prints one JSON object that says `scsi`, exits 0, and needs no disk."""
    done = program(lab, "--print-capabilities")
    told = json.loads(done.stdout)
    check_equal(told.get("type"), "scsi", "type")
    check(isinstance(told.get("features"), list), f"features: {told}")
    check_equal(done.stderr, "", "standard error")


def test_the_name_of_the_program_chooses(lab):
    """Called as its JSON descriptor names it, the program is the back end of that type."""
    lab.requires_vscsi("vhost-user-scsi")
    descriptor = json.loads(DESCRIPTOR.read_text())
    named = lab.scratch / pathlib.Path(descriptor["binary"]).name
    named.symlink_to(pathlib.Path(Vscsi.binary).resolve())
    told = json.loads(lab.run(named, "--print-capabilities", timeout=20).stdout)
    check_equal(told["type"], descriptor["type"], "type")
    path = lab.scratch / "named.sock"
    vhost_backend.start(lab, [f"--socket-path={path}", *PLAIN, "--ram", "16M"], [path],
                        program=named)
    with Frontend(path) as frontend:
        introduce(frontend)


def test_socket_path(lab):
    """With --socket-path it listens there, in the foreground; a front end may come again; SIGTERM
    ends it with 0, also while a front end is connected, and removes the socket."""
    path, image = lab.scratch / "backend.sock", lab.image("backend.img", 16 * MIB)
    backend = vhost_backend.start(lab, ["vhost-user-scsi", f"--socket-path={path}", *PLAIN, image],
                                  [path])
    check(os.getsid(backend.pid) == os.getsid(0), "it left its session, as a daemon does")
    for _ in range(2):
        with Frontend(path) as frontend:
            introduce(frontend)
    with Frontend(path) as frontend:
        introduce(frontend)
        check_equal(backend.stop(), 0, f"exit code on SIGTERM:\n{backend.log()}")
    check(not path.exists(), "the socket is still there")


def test_inherited_descriptor(lab):
    """With --fd it serves the front end at the other end, and ends with 0 when that hangs up."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with Frontend(ours) as frontend, inheriting(lab, theirs) as backend:
        introduce(frontend)
        frontend.close()
        code = ended(backend)
        check_equal(code, 0, f"exit code after the end of the connection:\n{said(lab)}")


def test_inherited_descriptor_and_sigterm(lab):
    """SIGTERM ends a back end with an inherited connection too."""
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with Frontend(ours) as frontend, inheriting(lab, theirs) as backend:
        introduce(frontend)
        backend.send_signal(signal.SIGTERM)
        check_equal(ended(backend), 0, f"exit code on SIGTERM:\n{said(lab)}")


@contextlib.contextmanager
def inheriting(lab, theirs):
    """The back end with this socket as its descriptor, which is closed here."""
    lab.requires_vscsi("vhost-user-scsi")
    words = [Vscsi.binary, "vhost-user-scsi", f"--fd={theirs.fileno()}", *PLAIN, "--ram", "16M"]
    with open(lab.scratch / "inheriting.log", "wb") as log:
        backend = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        yield backend
    finally:
        backend.kill()
        backend.wait()


def ended(backend):
    """The exit code of a back end that is to end now."""
    wait_until(lambda: backend.poll() is not None, 10, "the end of the back end")
    return backend.returncode


def said(lab):
    """What `inheriting` printed."""
    return (lab.scratch / "inheriting.log").read_text()


def test_exactly_one_way_in(lab):
    """--socket-path and --fd exclude each other, and one is needed: usage errors."""
    path = lab.scratch / "never.sock"
    for words in ((f"--socket-path={path}", "--fd=0"), ()):
        done = program(lab, *words, "--ram", "16M", ok=False)
        check_equal(done.returncode, USAGE, f"exit code of {words}")
        check("--fd" in done.stderr and "--socket-path" in done.stderr, done.stderr)
    check(not path.exists(), "a socket was made")


def test_early_failures(lab):
    """What keeps it from serving is said on standard error, with a non-zero exit."""
    path, image = lab.scratch / "failing.sock", lab.image("failing.img", 16 * MIB)
    nowhere = lab.scratch / "nowhere/x.sock"
    for words, named in [
        ((f"--socket-path={path}", "/nonexistent/disk.img"), "/nonexistent/disk.img"),
        ((f"--socket-path={nowhere}", image), str(nowhere)),
        (("--fd=987", image), "987"),
    ]:
        done = program(lab, *PLAIN, *words, ok=False)
        check(done.returncode not in (0, None), f"{words}: exit code {done.returncode}")
        check(named in done.stderr, f"{words}: {named} is not in: {done.stderr}")
        check("panicked" not in done.stderr, done.stderr)
    vhost_backend.start(lab, ["vhost-user-scsi", f"--socket-path={path}", *PLAIN, image], [path])
    done = program(lab, f"--socket-path={path}", *PLAIN, "--ram", "16M", ok=False)
    check(done.returncode not in (0, None), "a second process took the socket")
    check(str(path) in done.stderr, done.stderr)
    with Frontend(path) as frontend:
        introduce(frontend)
