"""What crossed the wire between an RDMA initiator and its target, out of a capture of RoCEv2.

Messages are put together from packets, and those of SRP checked: tshark knows iSER, but not SRP.
Numbers in comments are those of InfiniBand's "BTH" and "CM" formats.
"""

import collections
import dataclasses
import struct

from harness import Failed, check, check_equal

ROCE = 4791
TCP_SERVICE = 0x0106_0000
# Opcodes of reliable connections, by what they do to a message.
STARTS = {0x00, 0x04, 0x05, 0x17}
ENDS = {0x02, 0x03, 0x04, 0x05, 0x16, 0x17}
SENDS = {0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x16, 0x17}
# What follows the BTH before the payload: immediate data, or the key to invalidate.
EXTENDED = {0x03: 4, 0x05: 4, 0x16: 4, 0x17: 4}
WRITE_STARTS, READ = {0x06, 0x0A, 0x0B}, 0x0C
CONNECT, REPLY, REJECT = 0x10, 0x13, 0x12
SRP_CMD, SRP_MANAGE, SRP_RSP = 0x02, 0x01, 0xC1
# T10 SRP 6.8: a buffer's format.
DIRECT, INDIRECT, IMMEDIATE = 1, 2, 3


@dataclasses.dataclass
class Conversation:
    """One connection: what was said at its start, and its messages, `(is from initiator, bytes)`."""

    port: int
    login: bytes
    answer: bytes = b""
    messages: list = dataclasses.field(default_factory=list)
    writes: int = 0
    reads: int = 0


def conversations(path):
    """The connections of a capture in the order in which they were accepted."""
    asked, ends, found = {}, {}, []
    for source, destination, packet in _roce(path):
        opcode, flags, queue, sequence = struct.unpack(">BBxx4s4s", packet[:12])
        queue = int.from_bytes(queue[1:], "big")
        sequence = int.from_bytes(sequence[1:], "big")
        if queue == 1:
            _connect(source, destination, packet[20:276], asked, ends, found)
        elif (destination, queue) in ends:
            end = ends[destination, queue]
            payload = packet[12 + EXTENDED.get(opcode, 0):len(packet) - 4 - (flags >> 4 & 3)]
            end.take(opcode, sequence, payload)
    return found


class _End:
    """Puts together what arrives at one end of a connection."""

    def __init__(self, conversation, is_target, sequence):
        self._conversation = conversation
        self._is_target = is_target
        self._next = sequence
        self._parts = []

    def take(self, opcode, sequence, payload):
        ahead = (sequence - self._next) & 0xFFFFFF
        # Acknowledgements have sequence numbers of the other way; what was sent again is known.
        if 0x0D <= opcode <= 0x12 or ahead >= 0x800000:
            return
        self._next = (sequence + 1) & 0xFFFFFF
        if opcode in WRITE_STARTS:
            self._conversation.writes += 1
        elif opcode == READ:
            self._conversation.reads += 1
            # Its answer takes a number for each packet.
            length = int.from_bytes(payload[12:16], "big")
            self._next = (sequence + max(1, -(-length // MTU))) & 0xFFFFFF
        elif opcode in SENDS:
            if opcode in STARTS:
                self._parts = []
            self._parts.append(payload)
            if opcode in ENDS:
                self._conversation.messages.append((self._is_target, b"".join(self._parts)))


def _connect(source, destination, mad, asked, ends, found):
    if mad[1] != 0x07:
        return
    kind, data = int.from_bytes(mad[16:18], "big"), mad[24:]
    if kind == CONNECT:
        service = int.from_bytes(data[8:16], "big")
        # RDMA CM's own header is before what the initiator said.
        asked[source, data[:4]] = (service - TCP_SERVICE, _queue(data[32:35]), data[176:232],
                                   _queue(data[44:47]))
    elif kind == REPLY and (destination, data[4:8]) in asked:
        port, queue, login, sequence = asked.pop((destination, data[4:8]))
        conversation = Conversation(port, login, data[36:232])
        found.append(conversation)
        # Each says with which number it wants the other one to start.
        ends[source, _queue(data[12:15])] = _End(conversation, True, _queue(data[20:23]))
        ends[destination, queue] = _End(conversation, False, sequence)


def _queue(data):
    return int.from_bytes(data, "big")


def _roce(path):
    """The packets of RoCEv2 in a capture: `(from, to, BTH and the rest)`."""
    data = path.read_bytes()
    check_equal(data[:4], b"\xd4\xc3\xb2\xa1", "the first bytes of the capture")
    at = 24
    while at + 16 <= len(data):
        length, = struct.unpack_from("<I", data, at + 8)
        frame = data[at + 16:at + 16 + length]
        at += 16 + length
        if frame[12:14] != b"\x08\x00" or frame[23] != 17:
            continue
        start = 14 + (frame[14] & 15) * 4
        if struct.unpack_from(">H", frame, start + 2)[0] == ROCE:
            end = 14 + struct.unpack_from(">H", frame, 16)[0]
            yield frame[26:30], frame[30:34], frame[start + 8:end]


def check_iser(conversation, posted):
    """Checks that after the login no message of the target's has more data than `posted`."""
    is_full = False
    for is_request, message in conversation.messages:
        check(len(message) >= 76 and message[0] >> 4 == 1, f"iSER: {message[:28].hex()}")
        opcode, length = message[28] & 0x3F, int.from_bytes(message[33:36], "big")
        check_equal(len(message), 76 + message[32] * 4 + (length + 3) // 4 * 4,
                    f"length of a message of opcode {opcode:#x}")
        if not is_request:
            check(not is_full or length <= posted, f"opcode {opcode:#x} brings {length} bytes")
            # The final login response: the rest is the full feature phase.
            is_full |= opcode == 0x23 and message[29] & 0x83 == 0x83


def check_srp(conversation):
    """Checks the information units of an SRP channel; counts what the commands brought along."""
    counts = collections.Counter()
    login, answer = conversation.login, conversation.answer
    check_equal(login[11], 0x00, "opcode of the login request")
    check_equal(answer[0], 0xC0, "opcode of the login response")
    check_equal(answer[8:16], login[0:8], "tag of the login response")
    check_equal(answer[1:4] + answer[27:52], bytes(28), "reserved bytes of the login response")
    to_target, to_initiator = struct.unpack_from(">II", answer, 16)
    credit = int.from_bytes(answer[4:8], "big")
    wants_immediate, offset = login[10] & 0x80, int.from_bytes(login[48:50], "big")
    may_immediate = bool(wants_immediate and answer[26] & 0x80)
    waiting = {}
    for is_request, unit in conversation.messages:
        tag = unit[8:16]
        if is_request:
            check(len(unit) <= to_target, f"{len(unit)} bytes went to the target")
            counts[unit[0]] += 1
            if unit[0] in (SRP_CMD, SRP_MANAGE):
                credit -= 1
                check(credit >= 0, "more requests than the target lets in")
                waiting[tag] = unit[0]
            if unit[0] == SRP_CMD:
                counts.update(_buffers(unit, may_immediate, offset))
            continue
        check(len(unit) <= to_initiator, f"{len(unit)} bytes came from the target")
        counts[unit[0]] += 1
        check(unit[0] in (SRP_RSP, 0x80, 0x81), f"opcode {unit[0]:#x} came from the target")
        if unit[0] == SRP_RSP:
            check(tag in waiting, f"a response to nothing: {unit.hex()}")
            _response(unit, waiting.pop(tag))
            credit += int.from_bytes(unit[4:8], "big")
    return counts


def _response(unit, request):
    sense, data = struct.unpack_from(">II", unit, 28)
    flags = unit[18]
    check_equal(len(unit), 36 + data + sense, "length of a response")
    check_equal(unit[2:4] + unit[16:18], bytes(4), "reserved bytes of a response")
    check_equal((bool(flags & 1), bool(flags & 2)), (data > 0, sense > 0),
                "flags of a response against its lengths")
    check_equal(flags >> 6, 0, "reserved flags of a response")
    check((unit[19] == 2) == (sense > 0), f"status {unit[19]:#x} with {sense} bytes of sense")
    check(int.from_bytes(unit[20:24], "big") == 0 or flags & 0x0C, "residual count without a flag")
    check(int.from_bytes(unit[24:28], "big") == 0 or flags & 0x30, "residual count without a flag")
    if request == SRP_MANAGE:
        check_equal(data, 4, "response data of a task management function")


def _buffers(unit, may_immediate, offset):
    """How a command names its memory, as words."""
    at = 48 + (unit[31] & 0xFC)
    words = []
    for form, count in ((unit[5] >> 4, unit[6]), (unit[5] & 15, unit[7])):
        if form == DIRECT:
            at += 16
            words.append("direct")
        elif form == INDIRECT:
            entries = int.from_bytes(unit[at + 12:at + 16], "big") // 16
            at += 20 + 16 * count
            words.append("indirect" if count >= entries else "external")
        elif form == IMMEDIATE:
            check(may_immediate, "immediate data that was not agreed on")
            at = offset + int.from_bytes(unit[at:at + 4], "big")
            words.append("immediate")
        elif form:
            raise Failed(f"buffer format {form}")
    check(at <= len(unit), f"a command of {len(unit)} bytes says that it has {at}")
    return words


def dissected(lab, path, port):
    """How many iSCSI PDUs tshark finds over iSER on this port; what it finds malformed fails the
    test."""
    known = {line.split("\t")[2] for line in
             lab.run("tshark", "-G", "protocols").stdout.splitlines() if line.count("\t") > 1}
    words = ["tshark", "-r", path, "-o", f"iser.target_ports:{port}"]
    for guess in known.intersection(GUESSES):
        words += ["--disable-protocol", guess]
    words += ["-Y", "iscsi || _ws.malformed", "-T", "fields", "-e", "frame.number",
              "-e", "iscsi.opcode", "-e", "_ws.malformed"]
    rows = [line.split("\t") for line in lab.run(*words, timeout=300).stdout.splitlines()]
    malformed = [number for number, _, fault in rows if fault]
    check(not malformed, f"tshark finds {len(malformed)} packets malformed: {malformed[:9]}")
    return len(rows)


# The payload of a packet on a link of 4500 bytes.
MTU = 4096
# What tshark takes anything for that it does not know.
GUESSES = ("rpcordma", "smb_direct", "smc", "nvme-rdma", "lnet", "ethertype", "infiniband_sdp",
           "fcoib", "infiniband.eoib")
