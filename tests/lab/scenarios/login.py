"""Who may log in, and what a login negotiates, as initiators on the wire see it."""

from harness import Failed, check, check_equal
from initiator import Closed, Connection, Session, parse_text
from targets import Chap, Lun

MIB = 1 << 20
AUTHORIZATION_FAILURE, NOT_FOUND = 0x0202, 0x0203


def disk(lab, **options):
    """A target with one small RAM LUN."""
    return lab.target([Lun(size=16 * MIB)], **options)


def test_discovery_lists_the_target(lab):
    """iscsi-ls finds the target, its portal and its LUN."""
    lab.requires_program("iscsi-ls")
    target = disk(lab)
    listed = lab.run("iscsi-ls", "-s", f"iscsi://{target.address}").stdout
    check(f"Target:{target.name} Portal:{target.address},1" in listed, listed)
    check(f"Lun:{target.lun_number(0)} " in listed, listed)


def test_initiator_not_allowed_is_refused(lab):
    """An initiator that is not on the allow list gets 0202; one that is gets in."""
    target = disk(lab, allow=["iqn.2026-11.net.example:friend"])
    with Session(target, initiator="iqn.2026-11.net.example:friend") as friend:
        check_equal(friend.login_status, 0, "status of the allowed initiator")
    with Session(target, initiator="iqn.2026-11.net.example:stranger") as stranger:
        check(stranger.login_status in (AUTHORIZATION_FAILURE, NOT_FOUND),
              f"status of the other one: {stranger.login_status:#06x}")


def test_discovery_hides_targets_from_strangers(lab):
    """SendTargets=All names only targets that the asker may log in to."""
    target = disk(lab, allow=["iqn.2026-11.net.example:friend"])
    for who, seen in (("friend", True), ("stranger", False)):
        try:
            session = Session(target, initiator=f"iqn.2026-11.net.example:{who}",
                              session_type="Discovery")
        except Closed:
            check(not seen, "the allowed initiator may not discover")
            continue
        with session:
            if session.login_status:
                check(not seen, "the allowed initiator may not discover")
                continue
            answer = session.text({"SendTargets": "All"})
            found = parse_text(answer.data).get("TargetName") if answer else None
            check_equal(found, target.name if seen else None, f"what {who} finds")


def test_unknown_target_is_not_found(lab):
    """A login to a name that does not exist gets 0203."""
    target = disk(lab)
    with Session(target, keys={"TargetName": "iqn.2026-11.net.example:none"}) as session:
        check_equal(session.login_status, NOT_FOUND, "login status")


def test_chap_with_libiscsi(lab):
    """The right secret logs in; a wrong one, another user and none at all do not."""
    lab.requires_program("iscsi-inq")
    chap = Chap("lab-user", "lab-secret-12")
    target = disk(lab, chap=chap)
    place = f"{target.address}/{target.name}/{target.lun_number(0)}"
    lab.run("iscsi-inq", target.url())
    for login in ("lab-user%wrong-secret-1@", "other-user%lab-secret-12@", ""):
        done = lab.run("iscsi-inq", f"iscsi://{login}{place}", ok=False)
        check(done.returncode != 0, f"logged in as '{login}'")


def test_digests_carry_data(lab):
    """Each combination of digests is agreed on and carries reads and writes."""
    target = disk(lab)
    lun = target.lun_number(0)
    for header in ("None", "CRC32C"):
        for data in ("None", "CRC32C"):
            offer = {"HeaderDigest": header, "DataDigest": data}
            with Session(target, keys=offer) as session:
                agreed = {key: session.keys.get(key) for key in offer}
                check_equal(agreed, offer, "digests")
                session.clear_attentions(lun)
                # Immediate data, R2T and several PDUs a burst are all in a write of this size.
                block = bytes(range(256)) * 1024
                check_equal(session.write(lun, 8, block).status, 0, "write status")
                back = session.read(lun, 8, len(block) // 512)
                check(back.data == block, f"data differ with {offer}")
                check_equal(session.logout(), 0, "logout response")


def test_pdu_split_at_every_byte(lab):
    """A command whose bytes arrive one segment each is served like any other."""
    target = disk(lab)
    lun = target.lun_number(0)
    with Session(target) as session:
        session.clear_attentions(lun)
        command = session.command_pdu(lun, bytes([0x12, 0, 0, 0, 96, 0]), read=96)
        for byte in command.encode():
            session.send_bytes(bytes([byte]))
        check_equal(session.complete(command.word(16), lun, 96).status, 0, "status")


def test_many_commands_in_one_segment(lab):
    """64 commands sent at once all complete."""
    target = disk(lab)
    lun = target.lun_number(0)
    with Session(target) as session:
        session.clear_attentions(lun)
        commands = [session.command_pdu(lun, bytes([0x28, 0, 0, 0, 0, number, 0, 0, 1, 0]),
                                        read=512) for number in range(64)]
        session.send_bytes(b"".join(command.encode() for command in commands))
        waiting = {command.word(16) for command in commands}
        while waiting:
            pdu = session.receive()
            if pdu.flags & 1 or pdu.opcode == 0x21:
                check_equal(pdu.header[3], 0, "status")
                waiting.discard(pdu.word(16))


def test_same_isid_reinstates_the_session(lab):
    """A second login with the same name and ISID ends the first session."""
    target = disk(lab)
    isid = b"\x80\x12\x34\x56\x00\x01"
    with Session(target, isid=isid, timeout=5) as first:
        with Session(target, isid=isid) as second:
            check_equal(second.login_status, 0, "second login")
            try:
                while True:
                    first.receive()
            except Closed:
                pass
            except Failed as error:
                raise Failed(f"the first session lives on: {error}") from error


def test_ping_comes_back(lab):
    """NOP-Out data is echoed."""
    target = disk(lab)
    with Session(target) as session:
        data = bytes(range(200))
        session.send(session.ping_pdu(0x55, data))
        answer = session.receive()
        check_equal((answer.opcode, answer.word(16), answer.data), (0x20, 0x55, data), "NOP-In")


def test_ipv6(lab):
    """The target is reachable over ::1 when it listens there."""
    lab.requires_vscsi("IPv6 portal in this lab")
    lab.requires_program("iscsi-ls")
    target = lab.target([Lun(size=16 * MIB)], host="[::1]")
    listed = lab.run("iscsi-ls", "-s", f"iscsi://{target.address}").stdout
    check(f"Portal:[::1]:{target.port}" in listed, listed)


def test_connection_without_a_login_is_dropped(lab):
    """A peer that connects and says nothing loses its connection within 40 s."""
    lab.requires_vscsi("login timeout")
    target = disk(lab)
    with Connection(target.port, timeout=40) as peer:
        check(peer.answer() is None, "a PDU came without a login")
