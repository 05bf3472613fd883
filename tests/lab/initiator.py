"""A small iSCSI initiator on a plain socket, which can also say what no initiator should.

Only what the scenarios need: one connection a session, error recovery level 0. Every receive has a
timeout, and a peer that neither answers nor closes raises `Silence`.
"""

import dataclasses
import itertools
import os
import socket
import struct

from harness import Failed

# RFC 7143, section 11.1: opcodes of initiator and target.
NOP_OUT, SCSI_COMMAND, TMF, LOGIN, TEXT, DATA_OUT, LOGOUT, SNACK = 0, 1, 2, 3, 4, 5, 6, 0x10
NOP_IN, SCSI_RESPONSE, TMF_RESPONSE, LOGIN_RESPONSE, TEXT_RESPONSE = 0x20, 0x21, 0x22, 0x23, 0x24
DATA_IN, LOGOUT_RESPONSE, R2T, ASYNC, REJECT = 0x25, 0x26, 0x31, 0x32, 0x3F
IMMEDIATE = 0x40
NO_TAG = 0xFFFFFFFF
BHS = 48

GOOD, CHECK_CONDITION = 0x00, 0x02


class Silence(Failed):
    """The target neither answered nor closed the connection in time."""


class Closed(Exception):
    """The target closed the connection."""


def _crc32c_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC32C = _crc32c_table()


def crc32c(data):
    """The digest of `data` as it stands on the wire (RFC 7143, section 13.1)."""
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ _CRC32C[(value ^ byte) & 0xFF]
    return struct.pack("<I", value ^ 0xFFFFFFFF)


def pad4(data):
    """`data` with zeroes up to a multiple of four bytes."""
    return data + bytes(-len(data) % 4)


@dataclasses.dataclass
class Pdu:
    """A PDU without its digests. `header` is the 48-byte basic header segment."""

    header: bytearray
    ahs: bytes = b""
    data: bytes = b""

    @classmethod
    def new(cls, opcode, flags=0x80, itt=NO_TAG, lun=0, data=b"", **words):
        """A PDU with the common fields set; `words` are 32-bit fields as w20=…, w24=…"""
        header = bytearray(BHS)
        header[0], header[1] = opcode, flags
        struct.pack_into(">HHI", header, 8, lun, 0, 0)
        struct.pack_into(">I", header, 16, itt)
        for field, value in words.items():
            struct.pack_into(">I", header, int(field[1:]), value & 0xFFFFFFFF)
        return cls(header, b"", data)

    @property
    def opcode(self):
        return self.header[0] & 0x3F

    @property
    def flags(self):
        return self.header[1]

    def word(self, offset):
        """The 32-bit field at `offset` of the header."""
        return struct.unpack_from(">I", self.header, offset)[0]

    def encode(self, header_digest=False, data_digest=False):
        """The bytes of this PDU, with lengths filled in."""
        header = bytearray(self.header)
        header[4] = len(self.ahs) // 4
        header[5:8] = len(self.data).to_bytes(3, "big")
        head = bytes(header) + self.ahs
        wire = head + (crc32c(head) if header_digest else b"")
        if self.data:
            data = pad4(self.data)
            wire += data + (crc32c(data) if data_digest else b"")
        return wire


def text(keys):
    """Key=value pairs as a text data segment."""
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in keys.items())


def parse_text(data):
    """A text data segment as a dictionary; the last of a repeated key wins."""
    pairs = (entry.decode(errors="replace").partition("=") for entry in data.split(b"\0") if entry)
    return {key: value for key, _, value in pairs}


@dataclasses.dataclass
class Completion:
    """How a SCSI command ended."""

    status: int
    data: bytes = b""
    sense: bytes = b""
    residual: int = 0

    @property
    def sense_key(self):
        """Sense key, additional code and qualifier, as 0x052000; 0 without sense."""
        if len(self.sense) < 4:
            return 0
        if self.sense[0] & 0x7F >= 0x72:
            return int.from_bytes(bytes([self.sense[1] & 15]) + self.sense[2:4], "big")
        return int.from_bytes(bytes([self.sense[2] & 15]) + self.sense[12:14], "big")


class Connection:
    """A TCP connection to a target that speaks PDUs."""

    def __init__(self, port, timeout=10):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.header_digest = self.data_digest = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send_bytes(self, data):
        """Sends raw bytes; a connection that the target closed raises `Closed`."""
        try:
            self.socket.sendall(data)
        except TimeoutError as error:
            raise Silence("the target stopped reading") from error
        except OSError as error:
            raise Closed from error

    def send(self, pdu):
        self.send_bytes(pdu.encode(self.header_digest, self.data_digest))

    def receive_bytes(self, count):
        """Exactly `count` bytes."""
        data = bytearray()
        while len(data) < count:
            try:
                part = self.socket.recv(count - len(data))
            except TimeoutError as error:
                raise Silence("no answer and no close") from error
            except OSError as error:
                raise Closed from error
            if not part:
                raise Closed
            data += part
        return bytes(data)

    def receive(self):
        """The next PDU; a wrong digest from the target fails the test."""
        header = bytearray(self.receive_bytes(BHS))
        ahs = self.receive_bytes(header[4] * 4)
        if self.header_digest and self.receive_bytes(4) != crc32c(bytes(header) + ahs):
            raise Failed("the target sent a wrong header digest")
        length = int.from_bytes(header[5:8], "big")
        data = self.receive_bytes(length + -length % 4)
        if length and self.data_digest and self.receive_bytes(4) != crc32c(data):
            raise Failed("the target sent a wrong data digest")
        return Pdu(header, ahs, data[:length])

    def answer(self):
        """The next PDU, or None when the target closed the connection."""
        try:
            return self.receive()
        except Closed:
            return None


def login_pdu(keys, *, stage=(1, 3), transit=True, isid=None, cmd_sn=1, itt=1, more=False,
              tsih=0, cid=0, exp_stat_sn=0):
    """A Login Request (RFC 7143, section 11.12)."""
    flags = (0x80 if transit else 0) | (0x40 if more else 0) | stage[0] << 2 | stage[1]
    pdu = Pdu.new(LOGIN | IMMEDIATE, flags, itt, data=keys if isinstance(keys, bytes)
                  else text(keys), w24=cmd_sn, w28=exp_stat_sn)
    pdu.header[8:14] = isid or b"\x80" + os.urandom(5)
    struct.pack_into(">HIH", pdu.header, 14, tsih, itt, cid)
    return pdu


class Session(Connection):
    """A logged-in normal session with one connection."""

    INITIATOR = "iqn.2026-11.net.example:raw"
    KEYS = {
        "HeaderDigest": "None", "DataDigest": "None", "InitialR2T": "Yes", "ImmediateData": "Yes",
        "MaxRecvDataSegmentLength": 262144, "MaxBurstLength": 262144, "FirstBurstLength": 65536,
        "MaxOutstandingR2T": 1, "ErrorRecoveryLevel": 0, "MaxConnections": 1,
    }

    def __init__(self, target, *, initiator=INITIATOR, keys=None, isid=None, timeout=10,
                 session_type="Normal"):
        super().__init__(target.port, timeout)
        self._tags = itertools.count(0x100)
        self.cmd_sn = 1
        self.exp_stat_sn = 0
        who = {"InitiatorName": initiator, "SessionType": session_type}
        if session_type == "Normal":
            who["TargetName"] = target.name
        offered = {**who, **self.KEYS, **(keys or {})}
        if session_type == "Discovery":
            offered = {**who, "MaxRecvDataSegmentLength": 262144}
        self.isid = isid or b"\x80" + os.urandom(5)
        self.send(login_pdu(offered, isid=self.isid))
        self.login_status, self.keys = self._finish_login()

    def _finish_login(self):
        keys = {}
        while True:
            response = self.receive()
            if response.opcode != LOGIN_RESPONSE:
                raise Failed(f"opcode {response.opcode:#x} during login")
            status = int.from_bytes(response.header[36:38], "big")
            keys |= parse_text(response.data)
            if status:
                return status, keys
            self.exp_stat_sn = response.word(24) + 1
            if response.flags & 0x80 and response.flags & 3 == 3:
                self.header_digest = keys.get("HeaderDigest") == "CRC32C"
                self.data_digest = keys.get("DataDigest") == "CRC32C"
                return 0, keys
            self.send(login_pdu({}, isid=self.isid, exp_stat_sn=self.exp_stat_sn))

    def tag(self):
        """A task tag not used before on this connection."""
        return next(self._tags)

    def command_pdu(self, lun, cdb, *, read=0, write=0, immediate_data=b"", itt=None):
        """A SCSI Command with the next CmdSN, which it uses up."""
        flags = 0x80 | (0x40 if read else 0) | (0x20 if write else 0) | 1
        pdu = Pdu.new(SCSI_COMMAND, flags, self.tag() if itt is None else itt, lun, immediate_data,
                      w20=read or write, w24=self.cmd_sn, w28=self.exp_stat_sn)
        pdu.header[32:48] = cdb[:16].ljust(16, b"\0")
        self.cmd_sn = (self.cmd_sn + 1) & 0xFFFFFFFF
        return pdu

    def scsi(self, lun, cdb, *, read=0, data_out=b""):
        """Runs one command to its end. Write data goes out as the target asks for it."""
        command = self.command_pdu(lun, bytes(cdb), read=read, write=len(data_out))
        self.send(command)
        return self.complete(command.word(16), lun, read, data_out)

    def complete(self, itt, lun=0, read=0, data_out=b""):
        """Serves the target's requests for task `itt` until its status arrives."""
        data = bytearray(read)
        got = 0
        while True:
            pdu = self.receive()
            if pdu.opcode == NOP_IN and pdu.word(20) != NO_TAG:
                self.send(Pdu.new(NOP_OUT | IMMEDIATE, itt=NO_TAG, w20=pdu.word(20),
                                  w24=self.cmd_sn, w28=self.exp_stat_sn))
                continue
            if pdu.word(16) != itt:
                continue
            if pdu.opcode == DATA_IN:
                offset = pdu.word(40)
                if offset + len(pdu.data) > read:
                    raise Failed(f"Data-In past the expected length: {offset}+{len(pdu.data)}")
                data[offset:offset + len(pdu.data)] = pdu.data
                got = max(got, offset + len(pdu.data))
                if pdu.flags & 1:
                    self.exp_stat_sn = pdu.word(24) + 1
                    return Completion(pdu.header[3], bytes(data[:got]), residual=pdu.word(44))
            elif pdu.opcode == R2T:
                self._send_data(pdu, lun, data_out)
            elif pdu.opcode == SCSI_RESPONSE:
                self.exp_stat_sn = pdu.word(24) + 1
                length = int.from_bytes(pdu.data[:2], "big")
                return Completion(pdu.header[3], bytes(data[:got]), pdu.data[2:2 + length],
                                  pdu.word(44))
            elif pdu.opcode == REJECT:
                raise Failed(f"rejected, reason {pdu.header[2]:#x}")

    def _send_data(self, r2t, lun, data_out):
        offset, length = r2t.word(40), r2t.word(44)
        limit = int(self.keys.get("MaxRecvDataSegmentLength", 8192))
        end = offset + length
        if end > len(data_out):
            raise Failed(f"R2T past the expected length: {offset}+{length} of {len(data_out)}")
        for number in itertools.count():
            part = data_out[offset:min(offset + limit, end)]
            final = offset + len(part) == end
            self.send(Pdu.new(DATA_OUT, 0x80 if final else 0, r2t.word(16), lun, part,
                              w20=r2t.word(20), w28=self.exp_stat_sn, w36=number, w40=offset))
            offset += len(part)
            if final:
                return

    def clear_attentions(self, lun):
        """Takes the unit attentions that a new session finds."""
        for _ in range(16):
            if self.scsi(lun, bytes(6)).status != CHECK_CONDITION:
                return

    def read(self, lun, lba, blocks, block_size=512):
        """READ(10)."""
        cdb = struct.pack(">BBIBHB", 0x28, 0, lba, 0, blocks, 0)
        return self.scsi(lun, cdb, read=blocks * block_size)

    def write(self, lun, lba, data, block_size=512):
        """WRITE(10)."""
        cdb = struct.pack(">BBIBHB", 0x2A, 0, lba, 0, len(data) // block_size, 0)
        return self.scsi(lun, cdb, data_out=data)

    def text(self, keys):
        """A Text negotiation of one exchange; the target's keys, or None on a reject."""
        self.send(Pdu.new(TEXT | IMMEDIATE, 0x80, self.tag(), data=text(keys), w20=NO_TAG,
                          w24=self.cmd_sn, w28=self.exp_stat_sn))
        pdu = self.receive()
        self.exp_stat_sn = pdu.word(24) + 1
        return None if pdu.opcode == REJECT else pdu

    def ping_pdu(self, itt, data=b""):
        """An immediate NOP-Out that wants an answer."""
        return Pdu.new(NOP_OUT | IMMEDIATE, 0x80, itt, data=data, w20=NO_TAG, w24=self.cmd_sn,
                       w28=self.exp_stat_sn)

    def logout(self):
        """Closes the session as RFC 7143 asks; the target's response code."""
        self.send(Pdu.new(LOGOUT | IMMEDIATE, 0x80, self.tag(), w24=self.cmd_sn,
                          w28=self.exp_stat_sn))
        while True:
            pdu = self.receive()
            if pdu.opcode == LOGOUT_RESPONSE:
                return pdu.header[2]
