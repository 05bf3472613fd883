"""The `vscsi` program as whoever runs it sees it: command line, signals, control socket."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import struct
import subprocess
import time

from harness import CHECKOUT, Skip, check, check_equal, free_port, wait_until
from initiator import Closed, Session
from targets import Chap, Lun, Vscsi

MIB = 1 << 20
USAGE, CONFIGURATION = 2, 78
LUNS_CHANGED, CAPACITY_CHANGED, NOT_SUPPORTED = 0x063F0E, 0x062A09, 0x052500
POWER_ON = 0x062900


def vscsi(lab, *words, ok=True, timeout=20):
    """Runs the program to its end."""
    lab.requires_vscsi("program of that kind")
    return lab.run(Vscsi.binary, *words, ok=ok, timeout=timeout)


def report_luns(session):
    """The LUNs that REPORT LUNS names (single level)."""
    done = session.scsi(0, struct.pack(">B5xI2x", 0xA0, 4096), read=4096)
    check_equal(done.status, 0, "REPORT LUNS status")
    length = int.from_bytes(done.data[:4], "big")
    return [int.from_bytes(done.data[at:at + 2], "big") & 0x3FFF for at in range(8, 8 + length, 8)]


def capacity(session, lun):
    """The size in bytes that READ CAPACITY(10) tells."""
    done = session.scsi(lun, b"\x25" + bytes(9), read=8)
    check_equal(done.status, 0, "READ CAPACITY status")
    last, block = struct.unpack(">II", done.data)
    return (last + 1) * block


def attentions(session, lun):
    """The unit attentions that wait for this session, in the order they are reported."""
    found = []
    while len(found) < 16:
        done = session.scsi(lun, bytes(6))
        if done.sense_key >> 16 != 6:
            return found
        found.append(done.sense_key)
    return found


def test_readme_first_command(lab):
    """`vscsi serve` alone exports a 1 GiB RAM LUN on the loopback, and says how to use it."""
    lab.requires_vscsi("README")
    lab.requires_program("iscsi-ls")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 3260))
        except OSError as error:
            raise Skip("port 3260 is in use") from error
    readme = (CHECKOUT / "README.md").read_text()
    command = re.search(r"^\s*(?:\$ )?cargo run --release -- (serve.*?)\s*$", readme, re.MULTILINE)
    check(command, "README.md has no `cargo run --release -- serve` command")
    with running(lab, *shlex.split(command[1])) as log:
        wait_until(lambda: "iscsiadm" in log.read_text(), 10, "what to paste is printed")
        listed = lab.run("iscsi-ls", "-s", "iscsi://127.0.0.1:3260").stdout
        name = re.search(r"Target:(\S+)", listed)[1]
        # iscsi-ls takes the last block for the number of blocks, and rounds down.
        check("Size:1023M" in listed, listed)
        check(name in log.read_text(), f"the printed lines do not name {name}")


@contextlib.contextmanager
def running(lab, *words):
    """The program with these arguments; ends it with SIGTERM, on which it must exit 0."""
    log = lab.scratch / "running.log"
    with open(log, "wb") as file:
        child = subprocess.Popen([Vscsi.binary, *map(str, words)], stdout=file, stderr=file,
                                 stdin=subprocess.DEVNULL)
    try:
        yield log
    finally:
        child.send_signal(signal.SIGTERM)
        code = child.wait(20)
    check_equal(code, 0, f"exit code on SIGTERM:\n{log.read_text()}")


def test_nobody_is_allowed_by_default(lab):
    """Serving a disk without saying who may log in is a usage error."""
    done = vscsi(lab, "serve", "--ram", "16M", "--iscsi", f"127.0.0.1:{free_port()}", ok=False)
    check_equal(done.returncode, USAGE, "exit code")
    check("--allow" in done.stderr, done.stderr)


def test_missing_image_is_named(lab):
    """An image that does not exist ends the program with an error that names it."""
    done = vscsi(lab, "serve", "/nonexistent/disk.img", "--iscsi", f"127.0.0.1:{free_port()}",
                 "--allow-any", "--state-dir", "none", "--control", "none", ok=False)
    check(done.returncode not in (0, None), "exit code 0")
    check("/nonexistent/disk.img" in done.stderr, done.stderr)


def test_second_instance_is_refused(lab):
    """An image that one instance serves is refused to the next, which says who holds it."""
    lab.requires_vscsi("lock on images")
    image = lab.image("shared.img", 16 * MIB)
    first = lab.target([Lun(path=image)])
    second = vscsi(lab, "serve", image, "--iscsi", f"127.0.0.1:{free_port()}", "--allow-any",
                   "--state-dir", "none", "--control", lab.scratch / "second.sock", ok=False)
    check(second.returncode not in (0, None), "the second instance started")
    check(str(first.pid) in second.stderr, f"the holder {first.pid} is not named: {second.stderr}")
    check_equal(first.stop(), 0, "exit code of the first")


def register(session, key):
    """PERSISTENT RESERVE OUT with the service action REGISTER, without APTPL."""
    parameters = struct.pack(">QQ8x", 0, key)
    cdb = struct.pack(">B4xIx", 0x5F, len(parameters))
    return session.scsi(0, cdb, data_out=parameters)


def registered_keys(session):
    """The keys that PERSISTENT RESERVE IN names."""
    done = session.scsi(0, struct.pack(">B6xHx", 0x5E, 256), read=256)
    check_equal(done.status, 0, "PERSISTENT RESERVE IN status")
    length = int.from_bytes(done.data[4:8], "big")
    return [int.from_bytes(done.data[at:at + 8], "big") for at in range(8, 8 + length, 8)]


def test_killed_target_forgets_nothing_until_power_is_lost(lab):
    """kill -9 and start: the registration is there though APTPL is 0, and no unit attention."""
    lab.requires_vscsi("state directory of that kind")
    target = lab.target([Lun(path=lab.image("kept.img", 16 * MIB))])
    who = "iqn.2026-11.net.example:kept"
    isid = b"\x80live\x01"
    with Session(target, initiator=who, isid=isid) as session:
        session.clear_attentions(0)
        check_equal(register(session, 0xABCD).status, 0, "REGISTER status")
        time.sleep(0.2)
        target.kill()
    target.start()
    with Session(target, initiator=who, isid=isid) as session:
        check_equal(attentions(session, 0), [], "unit attentions after the restart")
        check_equal(registered_keys(session), [0xABCD], "keys after the restart")
    with Session(target, initiator=who + "-new") as session:
        check_equal(attentions(session, 0), [POWER_ON], "unit attentions of another initiator")


def test_sigterm_keeps_what_was_written(lab):
    """SIGTERM with a session open exits 0, and what was acknowledged is in the image."""
    lab.requires_vscsi("SIGTERM with sessions")
    image = lab.image("kept.img", 16 * MIB)
    target = lab.target([Lun(path=image)])
    with Session(target) as session:
        session.clear_attentions(0)
        check_equal(session.write(0, 7, b"\x5a" * 512).status, 0, "write status")
        check_equal(target.stop(), 0, "exit code")
    with open(image, "rb") as file:
        file.seek(7 * 512)
        check_equal(file.read(512), b"\x5a" * 512, "block 7")


def test_sigterm_asks_sessions_to_log_out(lab):
    """SIGTERM sends an asynchronous message that asks for a logout, and waits for that."""
    lab.requires_vscsi("SIGTERM with sessions")
    target = lab.target([Lun(size=16 * MIB)])
    with Session(target) as session:
        session.clear_attentions(0)
        os.kill(target.pid, signal.SIGTERM)
        message = session.receive()
        check_equal(message.opcode, 0x32, "opcode")
        check_equal(message.header[36], 1, "event: logout is requested")
        check_equal(session.scsi(0, bytes(6)).status, 0, "TEST UNIT READY before the logout")
        session.logout()
    wait_until(lambda: not target.alive(), 1.5, "the end after the last logout")
    check_equal(target.stop(), 0, "exit code")


def test_idle_costs_no_cpu(lab):
    """Five seconds with sessions that say nothing use at most one clock tick."""
    target = lab.target([Lun(size=16 * MIB) for _ in range(8)])
    with Session(target), Session(target):
        time.sleep(1)
        before = target.cpu_seconds()
        time.sleep(5)
        used = target.cpu_seconds() - before
    check(used <= 0.011, f"{used:.2f} s of CPU in 5 s")


def test_lun_add_and_remove_reach_the_initiator(lab):
    """A LUN added or removed shows in REPORT LUNS at once, with its unit attention."""
    lab.requires_vscsi("control socket of that kind")
    target = lab.target([Lun(size=16 * MIB), Lun(size=16 * MIB)])
    image = lab.image("added.img", 32 * MIB)
    with Session(target) as session:
        for lun in (0, 1):
            session.clear_attentions(lun)
        check_equal(report_luns(session), [0, 1], "LUNs before")
        target.control("lun", "add", image)
        check(LUNS_CHANGED in attentions(session, 0), "no REPORTED LUNS DATA HAS CHANGED")
        check_equal(report_luns(session), [0, 1, 2], "LUNs with the new one")
        session.clear_attentions(2)
        check_equal(capacity(session, 2), 32 * MIB, "capacity of the new LUN")
        session.clear_attentions(1)
        target.control("lun", "rm", 2)
        check(LUNS_CHANGED in attentions(session, 0), "no REPORTED LUNS DATA HAS CHANGED")
        check_equal(report_luns(session), [0, 1], "LUNs after")
        check_equal(session.scsi(2, bytes(6)).sense_key, NOT_SUPPORTED, "sense of the gone LUN")
        session.clear_attentions(1)
        check_equal(session.read(1, 0, 1).status, 0, "the other LUN")


def test_lun_resize_disturbs_no_other_lun(lab):
    """A grown LUN says so in a unit attention and in READ CAPACITY; its neighbour says nothing."""
    lab.requires_vscsi("control socket of that kind")
    image = lab.image("grown.img", 16 * MIB)
    target = lab.target([Lun(path=image), Lun(size=16 * MIB)])
    with Session(target) as session:
        for lun in (0, 1):
            session.clear_attentions(lun)
        target.control("lun", "resize", 0, "48M")
        check_equal(attentions(session, 1), [], "unit attentions of the neighbour")
        check_equal(attentions(session, 0), [CAPACITY_CHANGED], "unit attentions")
        check_equal(capacity(session, 0), 48 * MIB, "capacity")
        check_equal(session.read(0, 48 * MIB // 512 - 1, 1).data, bytes(512), "last block")
    check_equal(os.stat(image).st_size, 48 * MIB, "size of the image")


def test_lists_are_json(lab):
    """lun list, session list and stats tell in JSON what is there."""
    lab.requires_vscsi("control socket of that kind")
    target = lab.target([Lun(size=16 * MIB)])
    who = "iqn.2026-11.net.example:listed"
    with Session(target, initiator=who) as session:
        session.clear_attentions(0)
        for verb in (("lun", "list"), ("session", "list"), ("stats",)):
            text = target.control(*verb, "--json").stdout
            json.loads(text)
            if verb[0] == "session":
                check(who in text, text)


def test_session_kick_ends_only_that_session(lab):
    """session kick closes the sessions of one initiator; others go on."""
    lab.requires_vscsi("control socket of that kind")
    target = lab.target([Lun(size=16 * MIB)])
    who = "iqn.2026-11.net.example:kicked"
    with Session(target, initiator=who) as kicked, Session(target) as other:
        other.clear_attentions(0)
        sessions = json.loads(target.control("session", "list", "--json").stdout)
        number = next(entry["id"] for entry in sessions if entry["initiator"] == who)
        target.control("session", "kick", number)
        try:
            while True:
                kicked.receive()
        except Closed:
            pass
        check_equal(other.read(0, 0, 1).status, 0, "the other session")


def test_check_names_the_nearest_key(lab):
    """`vscsi check` refuses an unknown key and says which one may have been meant."""
    lab.requires_vscsi("configuration of that kind")
    good = {
        "portal_groups": [{"tag": 1, "listen": ["127.0.0.1:3260"]}],
        "targets": [{"name": "iqn.2026-11.net.example:checked", "allow_any": True,
                     "luns": [{"ram": "16M", "read_only": True}]}],
    }
    path = lab.scratch / "config.json"
    path.write_text(json.dumps(good))
    vscsi(lab, "check", path)
    path.write_text(json.dumps(good, indent=1).replace("read_only", "readonly"))
    done = vscsi(lab, "check", path, ok=False)
    check_equal(done.returncode, CONFIGURATION, "exit code")
    for part in ('"readonly"', '"read_only"', str(path)):
        check(part in done.stderr, f"{part} is not in: {done.stderr}")


def test_serve_takes_a_configuration_file(lab):
    """A LUN, a portal and an allow list that come from a file are served."""
    lab.requires_vscsi("configuration of that kind")
    lab.requires_program("iscsi-ls")
    port = free_port()
    path = lab.scratch / "config.json"
    path.write_text(json.dumps({
        "control": str(lab.scratch / "configured.sock"), "state_dir": str(lab.scratch / "state"),
        "portal_groups": [{"tag": 1, "listen": [f"127.0.0.1:{port}"]}],
        "targets": [{"name": "iqn.2026-11.net.example:configured", "allow_any": True,
                     "luns": [{"ram": "16M", "number": 5}]}],
    }))
    with running(lab, "serve", "--config", path) as log:
        wait_until(lambda: "iscsiadm" in log.read_text(), 10, "what to paste is printed")
        listed = lab.run("iscsi-ls", "-s", f"iscsi://127.0.0.1:{port}").stdout
        check("iqn.2026-11.net.example:configured" in listed and "Lun:5 " in listed, listed)


def test_secret_is_never_logged(lab):
    """A CHAP login, right or wrong, leaves no secret in the log or on the command line."""
    lab.requires_vscsi("log of that kind")
    lab.requires_program("iscsi-inq")
    target = lab.target([Lun(size=16 * MIB)], chap=Chap("lab-user", "lab-secret-12"))
    lab.run("iscsi-inq", target.url())
    lab.run("iscsi-inq", target.url().replace("lab-secret-12", "bad-secret-123"), ok=False)
    command_line = pathlib.Path(f"/proc/{target.pid}/cmdline").read_text()
    for secret in ("lab-secret-12", "bad-secret-123"):
        check(secret not in target.log() + command_line, f"{secret} is visible")


def test_help_of_every_verb(lab):
    """--help works everywhere and an unknown verb is a usage error."""
    for words in ((), ("serve",), ("check",), ("lun",), ("lun", "add"), ("session",), ("stats",)):
        check("Usage" in vscsi(lab, *words, "--help").stdout, f"no usage for {words}")
    check_equal(vscsi(lab, "srve", ok=False).returncode, USAGE, "exit code")
