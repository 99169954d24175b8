"""The wire protocol `backhaul.v1` and as much of RFC 6455 as it needs, written from docs/protocol.md alone.

Owns the schema of every message, both encodings and the frames. Knows nothing of the Rust code: where the two
disagree, one of them has misread the protocol. Standard library only.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import time

DEADLINE_S = 30
INTEGER_END = 1 << 53
MESSAGE_BYTES_MAX = 1 << 20
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


class Broken(Exception):
    """The other end has said what the protocol forbids, or nothing in time."""


def expect(condition, *words):
    """An assertion that survives `python3 -O`."""
    if not condition:
        raise Broken(" ".join(str(word) for word in words))


# ---- messages: (name, fields) in the order of the tables; a type is "int", "str", "body", [T], {"opt": T} or a table

LANE_OFFER = (("lane", "str"), ("epoch", "int"), ("first", "int"), ("next", "int"))
RECORD = (("seq", "int"), ("at", {"opt": "int"}), ("topic", "str"), ("body", "body"))
POSITION = (("lane", "str"), ("epoch", "int"), ("seq", "int"))
REFUSAL = POSITION + (("reason", "str"),)

AGENT = (
    ("hello", (("device", "str"), ("agent", "str"), ("boot", "str"), ("features", ["str"]), ("lanes", [LANE_OFFER]),
               ("commands", {"opt": (("stream", "int"), ("seq", "int"))}), ("last", {"opt": "str"}))),
    ("records", (("lane", "str"), ("epoch", "int"), ("records", [RECORD]))),
    ("gap", (("lane", "str"), ("epoch", "int"), ("from", "int"), ("to", "int"),
             ("lost", [(("why", "str"), ("count", "int"))]))),
    ("done", (("stream", "int"), ("seq", "int"))),
)
SERVER = (
    ("welcome", (("session", "str"), ("features", ["str"]), ("now", "int"), ("message_bytes_max", "int"),
                 ("acked", [POSITION]), ("rejected", [REFUSAL]), ("command_stream", "int"))),
    ("ack", POSITION),
    ("reject", REFUSAL),
    ("command", (("seq", "int"), ("topic", "str"), ("body", "body"))),
    ("retry", (("after_ms", "int"), ("spread_ms", "int"), ("endpoint", {"opt": "str"}))),
    ("pace", (("records_per_s", "int"),)),
)


def check(kind, value, where):
    """Refuses a value that is not exactly of this type, naming where."""
    if kind == "int":
        expect(type(value) is int and 0 <= value < INTEGER_END, where, "is no integer below 2^53:", repr(value))
    elif kind == "str":
        expect(type(value) is str, where, "is no string:", repr(value))
    elif kind == "body":
        expect(type(value) is dict and len(value) == 1, where, "is no body:", repr(value))
        (form, inner), = value.items()
        expect(form in ("text", "base64") and type(inner) is str, where, "is no body:", repr(value))
        if form == "base64":
            base64.b64decode(inner, validate=True)
    elif isinstance(kind, list):
        expect(type(value) is list, where, "is no array:", repr(value))
        for index, item in enumerate(value):
            check(kind[0], item, f"{where}[{index}]")
    elif isinstance(kind, dict):
        if value is not None:
            check(kind["opt"], value, where)
    else:
        names = [name for name, _ in kind]
        expect(type(value) is dict and sorted(value) == sorted(names), where, "has other keys than", names, repr(value))
        for name, inner in kind:
            check(inner, value[name], f"{where}.{name}")


def varint(number):
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def pack(kind, value):
    """postcard: varints, length-prefixed strings and arrays, a tag before an option and an enum."""
    if kind == "int":
        return varint(value)
    if kind == "str":
        return varint(len(value.encode())) + value.encode()
    if kind == "body":
        (form, inner), = value.items()
        octets = inner.encode() if form == "text" else base64.b64decode(inner)
        return varint(0 if form == "text" else 1) + varint(len(octets)) + octets
    if isinstance(kind, list):
        return varint(len(value)) + b"".join(pack(kind[0], item) for item in value)
    if isinstance(kind, dict):
        return b"\0" if value is None else b"\1" + pack(kind["opt"], value)
    return b"".join(pack(inner, value[name]) for name, inner in kind)


class Unpack:
    """Reads postcard from a byte string."""

    def __init__(self, octets):
        self.octets, self.at = octets, 0

    def take(self, count):
        expect(self.at + count <= len(self.octets), "postcard ends early")
        self.at += count
        return self.octets[self.at - count:self.at]

    def varint(self):
        number = shift = 0
        while True:
            octet = self.take(1)[0]
            number |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                return number

    def value(self, kind):
        if kind == "int":
            return self.varint()
        if kind == "str":
            return self.take(self.varint()).decode()
        if kind == "body":
            tag = self.varint()
            expect(tag in (0, 1), "body of form", tag)
            octets = self.take(self.varint())
            return {"text": octets.decode()} if tag == 0 else {"base64": base64.b64encode(octets).decode()}
        if isinstance(kind, list):
            return [self.value(kind[0]) for _ in range(self.varint())]
        if isinstance(kind, dict):
            tag = self.take(1)[0]
            expect(tag in (0, 1), "option tagged", tag)
            return self.value(kind["opt"]) if tag else None
        return {name: self.value(inner) for name, inner in kind}


def encode(table, encoding, name, fields):
    """One message as (opcode, payload). In JSON not even checked: a peer may want to say what is wrong."""
    if encoding == "json":
        return TEXT, json.dumps({name: fields}).encode()
    index = [each for each, _ in table].index(name)
    return BINARY, varint(index) + pack(table[index][1], fields)


def decode(table, encoding, opcode, payload):
    """One message as (name, fields), every key and type checked."""
    expect(len(payload) <= MESSAGE_BYTES_MAX, "message of", len(payload), "bytes")
    if encoding == "json":
        expect(opcode == TEXT, "a JSON message in a binary frame")
        message = json.loads(payload.decode())
        expect(type(message) is dict and len(message) == 1, "not one key:", message)
        (name, fields), = message.items()
        expect(name in dict(table), "unknown message", name)
    else:
        expect(opcode == BINARY, "a postcard message in a text frame")
        reader = Unpack(payload)
        index = reader.varint()
        expect(index < len(table), "unknown variant", index)
        name = table[index][0]
        fields = reader.value(table[index][1])
        expect(reader.at == len(payload), "bytes behind the message")
    check(dict(table)[name], fields, name)
    return name, fields


class Closed(Exception):
    """The connection has ended: `code` is None without a close frame."""

    def __init__(self, code, reason=""):
        super().__init__(f"closed with {code} {reason!r}")
        self.code, self.reason = code, reason


class WebSocket:
    """One end of an established connection. `client` masks what it sends, and refuses what is masked."""

    def __init__(self, sock, client, encoding, rest=b""):
        self.sock, self.client, self.encoding, self.rest = sock, client, encoding, rest
        self.sends, self.receives = (AGENT, SERVER) if client else (SERVER, AGENT)
        self.pings = 0
        self.answers_pings = True
        self.pongs = []
        self.bytes_max_seen = 0

    def frame(self, opcode, payload, fin=True):
        head = bytes([opcode | (0x80 if fin else 0)])
        mask = 0x80 if self.client else 0
        if len(payload) < 126:
            head += bytes([mask | len(payload)])
        elif len(payload) < 65536:
            head += bytes([mask | 126]) + struct.pack(">H", len(payload))
        else:
            head += bytes([mask | 127]) + struct.pack(">Q", len(payload))
        if self.client:
            key = os.urandom(4)
            stream = (key * (len(payload) // 4 + 1))[:len(payload)]
            mixed = int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")
            payload = key + mixed.to_bytes(len(payload), "big")
        self.sock.settimeout(DEADLINE_S)
        self.sock.sendall(head + payload)

    def say(self, name, **fields):
        """Sends a message; `from_` stands for `from`."""
        fields = {key.rstrip("_"): value for key, value in fields.items()}
        self.frame(*encode(self.sends, self.encoding, name, fields))

    def exactly(self, count, until):
        while len(self.rest) < count:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.sock.settimeout(left)
            try:
                more = self.sock.recv(65536)
            except socket.timeout:
                raise TimeoutError from None
            except ConnectionError:
                raise Closed(None, "reset") from None
            if not more:
                raise Closed(None, "end of stream")
            self.rest += more
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def one_frame(self, until):
        first, second = self.exactly(2, until)
        expect(first & 0x70 == 0, "reserved bits set")
        expect(bool(second & 0x80) != self.client, "masked by the wrong side")
        length = second & 0x7F
        if length == 126:
            length, = struct.unpack(">H", self.exactly(2, until))
        elif length == 127:
            length, = struct.unpack(">Q", self.exactly(8, until))
        key = self.exactly(4, until) if second & 0x80 else None
        payload = self.exactly(length, until)
        if key:
            stream = (key * (length // 4 + 1))[:length]
            payload = (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(length, "big")
        return first & 0x0F, bool(first & 0x80), payload

    def hear(self, within=DEADLINE_S, pong=None):
        """The next message as (name, fields). Raises Closed at the end and TimeoutError where none comes. With
        `pong`, the pong to that ping also ends the wait, as (None, None)."""
        until = time.monotonic() + within
        parts = None
        while True:
            opcode, fin, payload = self.one_frame(until)
            if opcode == PING:
                self.pings += 1
                if self.answers_pings:
                    self.frame(PONG, payload)
            elif opcode == PONG:
                if pong is not None and payload == pong:
                    return None, None
            elif opcode == CLOSE:
                code = struct.unpack(">H", payload[:2])[0] if payload else None
                try:
                    self.frame(CLOSE, payload[:2])
                except OSError:
                    pass
                raise Closed(code, payload[2:].decode())
            else:
                if opcode == CONT:
                    parts = (parts[0], parts[1] + payload)
                else:
                    expect(parts is None, "a message inside a message")
                    parts = (opcode, payload)
                if fin:
                    self.bytes_max_seen = max(self.bytes_max_seen, len(parts[1]))
                    return decode(self.receives, self.encoding, *parts)

    def hear_all(self):
        """Every message that the other end had sent before it read a ping sent now."""
        token = os.urandom(8)
        self.frame(PING, token)
        heard = []
        while True:
            name, fields = self.hear(pong=token)
            if name is None:
                return heard
            heard.append((name, fields))

    def ended(self, within=DEADLINE_S):
        """Waits for the end, whatever is said before it; the Closed that tells how."""
        try:
            while True:
                self.hear(within)
        except Closed as closed:
            self.sock.close()
            return closed

    def close(self, code=1000, reason=""):
        try:
            self.frame(CLOSE, struct.pack(">H", code) + reason.encode())
            self.ended()
        except (OSError, TimeoutError, Broken):
            pass
        self.sock.close()

    def drop(self):
        """Closes the TCP connection without a word."""
        self.sock.close()


def accept_key(key):
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()


def read_head(sock, rest=b""):
    """The start line, the headers (names in lower case) and what came behind them."""
    sock.settimeout(DEADLINE_S)
    while b"\r\n\r\n" not in rest:
        more = sock.recv(65536)
        if not more:
            raise Closed(None, f"no whole HTTP head, but {rest!r}")
        rest += more
    head, rest = rest.split(b"\r\n\r\n", 1)
    lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return lines[0], headers, rest


class Upgrade:
    """A client's upgrade request at a server, to be answered."""

    def __init__(self, sock):
        self.sock = sock
        self.line, self.headers, self.rest = read_head(sock)
        expect(re.fullmatch(r"GET \S+ HTTP/1\.1", self.line), "request line", self.line)
        expect("websocket" in self.headers.get("upgrade", "").lower(), "no upgrade:", self.headers)
        expect("upgrade" in self.headers.get("connection", "").lower(), "no upgrade:", self.headers)
        expect(self.headers.get("sec-websocket-version") == "13", "version", self.headers)
        expect(len(base64.b64decode(self.headers["sec-websocket-key"])) == 16, "key", self.headers)
        self.offered = [each.strip() for each in self.headers.get("sec-websocket-protocol", "").split(",")]

    def accept(self, encoding="json", protocol=...):
        """Upgrades. `protocol`: what is picked, None for nothing; else what `encoding` says."""
        if protocol is ...:
            protocol = f"backhaul.v1.{encoding}"
            expect(protocol in self.offered, protocol, "is not offered:", self.offered)
        picked = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
        self.sock.sendall(("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                           f"Sec-WebSocket-Accept: {accept_key(self.headers['sec-websocket-key'])}\r\n{picked}"
                           "\r\n").encode())
        return WebSocket(self.sock, False, encoding, self.rest)

    def refuse(self, status, **headers):
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.sock.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n{lines}\r\n".encode())
        self.sock.close()


class Refused(Exception):
    """The server has answered the upgrade by something else than 101."""

    def __init__(self, status, headers):
        super().__init__(f"refused with {status}")
        self.status, self.headers = status, headers


def dial(port, encoding="json", token=None, protocols=..., path="/v1"):
    """A client's connection to a server on loopback, upgraded."""
    sock = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
    key = base64.b64encode(os.urandom(16)).decode()
    protocols = f"backhaul.v1.{encoding}" if protocols is ... else protocols
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
             "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"]
    lines += [f"Sec-WebSocket-Protocol: {protocols}"] if protocols else []
    lines += [f"Authorization: Bearer {token}"] if token else []
    sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    line, headers, rest = read_head(sock)
    status = int(line.split()[1])
    if status != 101:
        sock.close()
        raise Refused(status, headers)
    expect(headers["sec-websocket-accept"] == accept_key(key), "Sec-WebSocket-Accept", headers)
    socket_ = WebSocket(sock, True, encoding, rest)
    socket_.picked = headers.get("sec-websocket-protocol")
    return socket_
