"""A vhost-user front end that only asks: what a VMM says to a back end before its guest starts."""

import socket
import struct

from harness import check, check_equal

GET_FEATURES, SET_OWNER = 1, 3
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM = 15, 16, 17
VERSION, VERSION_MASK, REPLY = 1, 3, 4
# Feature bits, and bits of the protocol's own features.
PROTOCOL_FEATURES, VERSION_1 = 30, 32
MQ = 0


class Frontend:
    """One connection to a back end; `peer` is the path of its socket, or the socket itself."""

    def __init__(self, peer, seconds=10):
        if isinstance(peer, socket.socket):
            self._socket = peer
        else:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(str(peer))
        self._socket.settimeout(seconds)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Hangs up, as a VMM that ends does."""
        self._socket.close()

    def ask(self, request):
        """The 64-bit answer to a request without a payload."""
        self.tell(request)
        number, flags, size = struct.unpack("<III", self._receive(12))
        check_equal((number, flags & (VERSION_MASK | REPLY), size), (request, VERSION | REPLY, 8),
                    f"header of the reply to request {request}")
        return struct.unpack("<Q", self._receive(8))[0]

    def tell(self, request, payload=b""):
        """Sends a request that has no answer."""
        self._socket.sendall(struct.pack("<III", request, VERSION, len(payload)) + payload)

    def introduce(self):
        """Goes through QEMU's first questions; returns how many rings the back end has."""
        features = self.ask(GET_FEATURES)
        for bit in (PROTOCOL_FEATURES, VERSION_1):
            check(features >> bit & 1, f"feature {bit} is not offered: {features:#x}")
        offered = self.ask(GET_PROTOCOL_FEATURES)
        check(offered >> MQ & 1, f"MQ is not offered: {offered:#x}")
        self.tell(SET_PROTOCOL_FEATURES, struct.pack("<Q", offered))
        rings = self.ask(GET_QUEUE_NUM)
        self.tell(SET_OWNER)
        return rings

    def _receive(self, size):
        data = b""
        while len(data) < size:
            part = self._socket.recv(size - len(data))
            check(part, f"the back end hung up after {len(data)} of {size} bytes")
            data += part
        return data
