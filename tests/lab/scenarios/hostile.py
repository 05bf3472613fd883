"""Peers that break the protocol. Each gets a defined answer or a closed connection, and nobody else
notices: see `guard.Guard` for what that means."""

import os
import random
import resource
import select
import socket
import struct
import time

from guard import MIB, Guard
from harness import Failed, check
from initiator import (
    CHECK_CONDITION, DATA_IN, DATA_OUT, IMMEDIATE, LOGIN, LOGIN_RESPONSE, LOGOUT, NO_TAG, NOP_IN,
    NOP_OUT, R2T, REJECT, SCSI_COMMAND, SCSI_RESPONSE, SNACK, TEXT, TMF, Closed, Connection, Pdu,
    Session, login_pdu, text,
)
from targets import Lun

SEED = int(os.environ.get("LAB_SEED", "20261123"))
PROBE = 0x7FFF0001


def victim(lab):
    """A target with a LUN to mistreat and a LUN for the bystander."""
    return lab.target([Lun(size=16 * MIB), Lun(size=16 * MIB)])


def login_keys(target, **keys):
    """The keys of an ordinary login, with some replaced or added."""
    return {"InitiatorName": Session.INITIATOR, "TargetName": target.name,
            "SessionType": "Normal", **Session.KEYS, **keys}


def expect_answer_or_close(session, what):
    """Pings after a bad PDU; ends when the ping is answered or the connection is closed.

    Returns the PDUs that came before that, and whether the connection is still open.
    """
    answers = []
    try:
        session.send(session.ping_pdu(PROBE))
        while True:
            pdu = session.receive()
            if pdu.opcode == NOP_IN and pdu.word(16) == PROBE:
                return answers, True
            answers.append(pdu)
            check(len(answers) < 1000, f"{what}: endless answers")
    except Closed:
        return answers, False
    except Failed as error:
        raise Failed(f"{what}: {error}") from error


def bad_pdus(session, lun):
    """(what, bytes) of PDUs that are wrong in full feature phase."""
    def pdu(opcode, flags=0x80, data=b"", ahs=b"", itt=0x10, **words):
        words = {"w24": session.cmd_sn, "w28": session.exp_stat_sn, **words}
        made = Pdu.new(opcode, flags, itt, lun, data, **words)
        made.ahs = ahs
        return made

    def command(cdb, flags, length, data=b"", ahs=b"", **words):
        made = pdu(SCSI_COMMAND, flags, data, ahs, w20=length, **words)
        made.header[32:48] = cdb.ljust(16, b"\0")
        return made

    read = bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0])
    write = bytes([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0])
    for opcode in (*range(0x07, 0x10), *range(0x11, 0x3F), 0x3F):
        yield f"opcode {opcode:#x}", pdu(opcode).encode()
    for opcode in (NOP_OUT, SCSI_COMMAND, TMF, TEXT, DATA_OUT, LOGOUT, SNACK):
        huge = bytearray(pdu(opcode).encode())
        huge[5:8] = b"\xff\xff\xff"
        yield f"opcode {opcode:#x} with 16 MiB of data announced", bytes(huge)
        long_ahs = bytearray(pdu(opcode).encode())
        long_ahs[4] = 255
        yield f"opcode {opcode:#x} with 1020 bytes of AHS", bytes(long_ahs) + bytes(1020)
    yield "unknown AHS type", command(read, 0xC1, 512, ahs=b"\0\5\x3f\0\0\0\0\0").encode()
    yield "AHS longer than its segment", command(read, 0xC1, 512, ahs=b"\xff\xff\1\0").encode()
    yield "AHS of length 0", command(read, 0xC1, 512, ahs=bytes(4)).encode()
    yield "login in full feature phase", pdu(LOGIN | IMMEDIATE, 0x87).encode()
    yield "Data-Out for no transfer", pdu(DATA_OUT, data=bytes(512), w20=0x1234).encode()
    yield "unsolicited Data-Out for no task", pdu(DATA_OUT, data=bytes(512), w20=NO_TAG).encode()
    yield "Data-Out past the transfer", pdu(DATA_OUT, data=bytes(512), w20=1, w40=NO_TAG).encode()
    yield "read of 4 GiB", command(read, 0xC1, NO_TAG).encode()
    yield "write of 4 GiB", command(write, 0xA1, NO_TAG).encode()
    yield "immediate data past the length", command(write, 0xA1, 512, bytes(8192)).encode()
    yield "immediate data of a read", command(read, 0xC1, 512, bytes(512)).encode()
    yield "neither final nor more data", command(write, 0x21, 512).encode()
    yield "CmdSN far ahead", command(read, 0xC1, 512, w24=session.cmd_sn + 0x10000).encode()
    yield "CmdSN behind", command(read, 0xC1, 512, w24=session.cmd_sn - 5).encode()
    yield "ExpStatSN far ahead", pdu(NOP_OUT | IMMEDIATE, w20=NO_TAG, w28=0x7FFFFFF0).encode()
    yield "reserved task attribute", command(read, 0xC7, 512).encode()
    yield "reserved tag", command(read, 0xC1, 512, itt=NO_TAG).encode()
    for function in (0, 8, 13, 0x7F):
        yield f"task management {function}", pdu(TMF | IMMEDIATE, 0x80 | function).encode()
    for reason in (2, 3, 0x7F):
        yield f"logout reason {reason}", pdu(LOGOUT | IMMEDIATE, 0x80 | reason).encode()
    for kind in (0, 1, 2, 3, 15):
        yield f"SNACK type {kind}", pdu(SNACK, 0x80 | kind, w20=NO_TAG).encode()
    for what, data in {
        "no separator": b"garbage\0", "no end": b"SendTargets=All", "no key": b"=x\0",
        "long key": b"X-" + b"k" * 100 + b"=1\0", "long value": b"X-k=" + b"v" * 7000 + b"\0",
        "not UTF-8": b"\xff\xfe=\x80\0", "zeroes": bytes(4096), "many keys": b"X-a=b\0" * 1300,
    }.items():
        yield f"text with {what}", pdu(TEXT | IMMEDIATE, data=data, w20=NO_TAG).encode()
    yield "text with an unknown transfer tag", pdu(TEXT | IMMEDIATE, w20=0x4242).encode()
    yield "NOP-Out answering nothing", pdu(NOP_OUT | IMMEDIATE, itt=NO_TAG, w20=0x77).encode()


def test_bad_pdus(lab):
    """Unknown opcodes, impossible lengths and fields out of place, one connection each."""
    target = victim(lab)
    lun = target.lun_number(0)
    with Guard(target):
        with Session(target) as model:
            names = [name for name, _ in bad_pdus(model, lun)]
        for number, name in enumerate(names):
            with login_after(target, names[number - 1]) as session:
                data = list(bad_pdus(session, lun))[number][1]
                try:
                    session.send_bytes(data)
                except Closed:
                    continue
                if "announced" in name:
                    # The rest of the segment never comes: the length alone must be refused.
                    expect_refusal_without_data(session, name)
                else:
                    expect_answer_or_close(session, name)


def expect_refusal_without_data(session, name):
    """An announced segment that is too long is refused from its header."""
    try:
        pdu = session.answer()
    except Failed as error:
        raise Failed(f"{name}: {error}") from error
    check(pdu is None or pdu.opcode == REJECT, f"{name}: answered by opcode "
          f"{pdu.opcode if pdu else 0:#x}")


def test_random_pdus(lab):
    """Headers of random bytes, and good headers with random bits flipped."""
    target = victim(lab)
    dice = random.Random(SEED)
    with Guard(target):
        for number in range(300):
            with login_after(target, f"seed {SEED}, PDU {number - 1}") as session:
                try:
                    if number % 2:
                        header = bytearray(dice.randbytes(48))
                        header[4], header[5:7] = 0, b"\0\0"
                        header += bytes(header[7] + -header[7] % 4)
                    else:
                        cdb = dice.randbytes(16)
                        pdu = session.command_pdu(target.lun_number(0), b"\0" + cdb, read=512)
                        header = bytearray(pdu.encode())
                        for _ in range(dice.randrange(1, 6)):
                            place = dice.choice([*range(4), *range(8, 48)])
                            header[place] ^= 1 << dice.randrange(8)
                    session.send_bytes(bytes(header))
                except Closed:
                    continue
                # A flipped bit can ask for data that never comes or make CmdSN skip; what is left
                # to hold is that the ping is answered or the connection closed.
                expect_answer_or_close(session, f"seed {SEED}, PDU {number}: {header.hex()}")


def test_wrong_digests(lab):
    """A wrong header digest ends the connection; data with a wrong digest is never written."""
    target = victim(lab)
    lun = target.lun_number(0)
    with Guard(target):
        with Session(target, keys={"HeaderDigest": "CRC32C"}, timeout=5) as session:
            session.send_bytes(session.ping_pdu(1).encode() + b"\xde\xad\xbe\xef")
            check(session.answer() is None, "a wrong header digest was answered")
        with Session(target, keys={"DataDigest": "CRC32C"}, timeout=5) as session:
            session.clear_attentions(lun)
            check(session.write(lun, 0, b"\x11" * 512).status == 0, "cannot write")
            command = session.command_pdu(lun, bytes([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]), write=512,
                                          immediate_data=b"\x22" * 512)
            session.send_bytes(command.encode() + b"\xde\xad\xbe\xef")
            answer = session.answer()
            check(answer is None or answer.opcode == REJECT
                  or answer.opcode == SCSI_RESPONSE and answer.header[3] == CHECK_CONDITION,
                  f"wrong data digest: opcode {answer.opcode if answer else 0:#x}")
        with Session(target) as session:
            session.clear_attentions(lun)
            check(session.read(lun, 0, 1).data == b"\x11" * 512, "data with a wrong digest landed")


BAD_VALUES = ("", "0", "-1", "16777216", "4294967296", "99999999999999999999", "abc", "0x", "Yes",
              "1~", "Maybe", "1,2", "v" * 255, "v" * 3000)
KEYS = ("HeaderDigest", "DataDigest", "MaxConnections", "InitialR2T", "ImmediateData",
        "MaxRecvDataSegmentLength", "MaxBurstLength", "FirstBurstLength", "DefaultTime2Wait",
        "DefaultTime2Retain", "MaxOutstandingR2T", "DataPDUInOrder", "DataSequenceInOrder",
        "ErrorRecoveryLevel", "SessionType", "TaskReporting", "iSCSIProtocolLevel", "AuthMethod",
        "IFMarker", "OFMarkInt", "TargetName", "InitiatorName", "SendTargets", "X-unknown")


def bad_logins(target):
    """(what, PDU) of first Login Requests that are wrong."""
    for key in KEYS:
        for value in BAD_VALUES:
            yield f"{key}={value[:24]}", login_pdu(login_keys(target, **{key: value}))
    good = text(login_keys(target))
    yield "repeated key", login_pdu(good + b"MaxBurstLength=4096\0")
    yield "no keys", login_pdu(b"")
    yield "no initiator name", login_pdu({"TargetName": target.name})
    yield "no target name", login_pdu({"InitiatorName": "iqn.2026-11.net.example:x"})
    yield "unknown target", login_pdu(login_keys(target, TargetName="iqn.2026-11.net.example:no"))
    yield "no end of text", login_pdu(good[:-1])
    yield "garbage", login_pdu(random.Random(SEED).randbytes(8192))
    for now in range(4):
        for later in range(4):
            yield f"stage {now} to {later}", login_pdu(good, stage=(now, later))
    yield "transit and more", login_pdu(good, more=True)
    yield "unknown session", login_pdu(good, tsih=0x7777)
    version = login_pdu(good)
    version.header[2], version.header[3] = 9, 5
    yield "version 5 to 9", version


def test_bad_logins(lab):
    """Keys out of range and requests out of order: a login response, a reject, or a close."""
    target = victim(lab)
    with Guard(target):
        for what, pdu in bad_logins(target):
            with Connection(target.port, timeout=5) as peer:
                try:
                    peer.send(pdu)
                    answer = peer.answer()
                except Closed:
                    continue
                except Failed as error:
                    raise Failed(f"{what}: {error}") from error
                check(answer is None or answer.opcode in (LOGIN_RESPONSE, REJECT),
                      f"{what}: opcode {answer.opcode if answer else 0:#x}")


def test_first_pdu_is_no_login(lab):
    """Anything but a Login Request as the first PDU gets a refusal or a close."""
    target = victim(lab)
    with Guard(target):
        for opcode in (*range(0x40), 0x81, 0xC3):
            if opcode & 0x3F == LOGIN:
                continue
            with Connection(target.port, timeout=5) as peer:
                peer.send_bytes(Pdu.new(opcode).encode())
                try:
                    answer = peer.answer()
                except Failed as error:
                    raise Failed(f"first PDU {opcode:#x}: {error}") from error
                check(answer is None or answer.opcode in (LOGIN_RESPONSE, REJECT),
                      f"first PDU {opcode:#x}: served")


def test_endless_login_text(lab):
    """Login text that never ends (C bit) is cut off before it fills the memory."""
    target = victim(lab)
    with Guard(target):
        with Connection(target.port, timeout=5) as peer:
            isid = b"\x80lab\0\0"
            for number in range(4096):
                keys = b"X-%d=" % number + b"v" * 8000 + b"\0"
                try:
                    peer.send(login_pdu(keys, transit=False, more=True, isid=isid))
                    answer = peer.answer()
                except Closed:
                    return
                if answer is None or answer.opcode == REJECT or answer.header[36]:
                    return
        raise Failed("32 MiB of login text were taken")


def test_truncated_at_every_byte(lab):
    """A login cut off after each of its bytes: the target closes its side too."""
    target = victim(lab)
    stream = login_pdu(login_keys(target)).encode()
    with Guard(target):
        for length in range(len(stream)):
            with Connection(target.port, timeout=10) as peer:
                peer.send_bytes(stream[:length])
                peer.socket.shutdown(socket.SHUT_WR)
                try:
                    check(peer.answer() is None, f"cut after {length} bytes: answered")
                except Failed as error:
                    raise Failed(f"cut after {length} of {len(stream)} bytes: {error}") from error


def test_truncated_commands(lab):
    """A write cut off at bytes of its header and data leaves the medium as it was."""
    target = victim(lab)
    lun = target.lun_number(0)
    with Guard(target):
        with Session(target) as session:
            session.clear_attentions(lun)
            session.write(lun, 0, b"\x33" * 512)
        for length in (*range(0, 48, 5), *range(48, 560, 37)):
            with Session(target) as session:
                session.clear_attentions(lun)
                command = session.command_pdu(
                    lun, bytes([0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0]), write=512,
                    immediate_data=b"\x44" * 512)
                session.send_bytes(command.encode()[:length])
                session.socket.shutdown(socket.SHUT_WR)
                check(session.answer() is None, f"cut after {length} bytes: answered")
        with Session(target) as session:
            session.clear_attentions(lun)
            check(session.read(lun, 0, 1).data == b"\x33" * 512, "part of a write landed")


def test_half_open_logins(lab):
    """10,000 connections that begin a login and say no more."""
    count = 10_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lab.requires_open_files(count + 200)
    target = victim(lab)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 1000), hard))
    part = login_pdu(login_keys(target)).encode()[:60]
    peers = []
    try:
        with Guard(target, memory=256 * MIB) as guard:
            for number in range(count):
                peers.append(half_open(target.port, part[:1 + number % len(part)]))
            guard.note_memory()
            time.sleep(1)
            guard.note_memory()
            while peers:
                peers.pop().close()
            wait_for_quiet(target)
    finally:
        for peer in peers:
            peer.close()


def half_open(port, data):
    """A connection with an unfinished login; one that the target refuses is as good."""
    peer = socket.socket()
    peer.settimeout(10)
    try:
        peer.connect(("127.0.0.1", port))
        peer.sendall(data)
    except TimeoutError as error:
        raise Failed("the target takes no more connections and refuses none") from error
    except OSError:
        pass
    return peer


def wait_for_quiet(target):
    """Returns when a login works again, within the time that a login may take."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with Session(target, timeout=5) as session:
                if session.login_status == 0:
                    return
        except (Failed, Closed, OSError):
            pass
        check(time.monotonic() < deadline, "no login works after the flood")
        time.sleep(0.2)


def test_random_cdbs(lab):
    """CDBs of every opcode with random fields: each command ends with a status."""
    target = victim(lab)
    lun = target.lun_number(0)
    dice = random.Random(SEED)
    with Guard(target):
        session = Session(target)
        session.clear_attentions(lun)
        for opcode in range(256):
            for _ in range(24):
                session = random_command(target, session, lun, opcode, dice)
        session.close()
        with Session(target) as fresh:
            fresh.clear_attentions(lun)
            inquiry = fresh.scsi(lun, bytes([0x12, 0, 0, 0, 96, 0]), read=96)
            check(inquiry.status == 0, "INQUIRY fails after the random commands")


def random_command(target, session, lun, opcode, dice):
    """Runs one random command; the session to go on with, a new one if the target ended this."""
    cdb = bytearray([opcode]) + bytearray(dice.randbytes(15))
    if dice.random() < 0.7:
        # Mostly zeroes reach further into a handler than noise does.
        cdb[1:] = bytes(value if dice.random() < 0.25 else 0 for value in cdb[1:])
    length = dice.choice((0, 1, 8, 24, 255, 512, 4096, 65536))
    try:
        if dice.random() < 0.5:
            session.scsi(lun, cdb, read=length)
        else:
            session.scsi(lun, cdb, data_out=dice.randbytes(length))
        return session
    except Closed:
        session.close()
        return login_after(target, f"seed {SEED}: CDB {cdb.hex()}, {length} bytes")
    except Failed as error:
        raise Failed(f"seed {SEED}: CDB {cdb.hex()}, {length} bytes: {error}") from error


def login_after(target, what):
    """A new session after the target closed one, which it may; ending itself it may not."""
    try:
        return Session(target, timeout=5)
    except (Closed, OSError) as error:
        raise Failed(f"{what}: ended the target\n{target.log()[-2000:]}") from error


def test_random_parameter_lists(lab):
    """Random data for every command that takes a parameter list."""
    target = victim(lab)
    lun = target.lun_number(0)
    dice = random.Random(SEED)
    commands = (0x04, 0x15, 0x55, 0x42, 0x5F, 0x83, 0x89, 0x48, 0x3B, 0x1D, 0xA3, 0xA4)
    with Guard(target):
        session = Session(target)
        session.clear_attentions(lun)
        for opcode in commands:
            for _ in range(60):
                length = dice.randrange(0, 600)
                cdb = bytearray(16)
                cdb[0] = opcode
                cdb[1] = dice.choice((0, 0x10, dice.randrange(256), dice.randrange(16)))
                cdb[2] = dice.choice((0, dice.randrange(8)))
                # Every place where one of these commands has its parameter list length.
                if opcode in (0x04, 0x15, 0x1D):
                    cdb[4] = min(length, 255)
                elif opcode in (0x42, 0x55, 0x5F, 0x48, 0x3B):
                    struct.pack_into(">H", cdb, 7, length)
                else:
                    struct.pack_into(">I", cdb, 10, length)
                data = bytearray(dice.randbytes(length))
                if dice.random() < 0.5 and length >= 8:
                    struct.pack_into(">HH", data, 0, length - 2, length - 8)
                try:
                    session.scsi(lun, cdb, data_out=bytes(data))
                except Closed:
                    session.close()
                    session = login_after(target, f"seed {SEED}: {cdb.hex()} {data.hex()}")
                except Failed as error:
                    raise Failed(f"seed {SEED}: {cdb.hex()} {data.hex()}: {error}") from error
        session.close()


def test_slow_reader(lab):
    """A peer that asks for 64 MiB and reads none of it does not hold up the others."""
    target = victim(lab)
    lun = target.lun_number(0)
    with Guard(target, memory=96 * MIB):
        with Session(target, timeout=5) as session:
            session.clear_attentions(lun)
            session.socket.setblocking(False)
            cdb = struct.pack(">BBIBHB", 0x28, 0, 0, 0, 512, 0)
            for _ in range(256):
                data = session.command_pdu(lun, cdb, read=512 * 512).encode()
                if not select.select([], [session.socket], [], 0.2)[1]:
                    break
                try:
                    session.socket.send(data)
                except (BlockingIOError, ConnectionError):
                    break
            time.sleep(2)


def test_data_never_sent(lab):
    """A peer that starts writes and never sends their data, then disconnects."""
    target = victim(lab)
    lun = target.lun_number(0)
    with Guard(target):
        for _ in range(20):
            with Session(target, timeout=5) as session:
                session.clear_attentions(lun)
                cdb = struct.pack(">BBIBHB", 0x2A, 0, 0, 0, 256, 0)
                for _ in range(16):
                    session.send(session.command_pdu(lun, cdb, write=256 * 512))
                seen = session.receive()
                check(seen.opcode in (R2T, SCSI_RESPONSE, DATA_IN), f"opcode {seen.opcode:#x}")
