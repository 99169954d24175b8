"""An agent that has only read docs/protocol.md, against the receiver: what it answers, what it stores, whom it
refuses.

    python3 tests/peers/client.py target/debug/backhaul-receiver [CHECK...]
"""

import base64
import json
import re
import signal
import sqlite3
import subprocess
import time

from rig import check, main
from wire import (BINARY, CONT, DEADLINE_S, TEXT, Refused, dial, encode, expect, AGENT)


class Receiver:
    """The process, and its store as any other program would read it."""

    def __init__(self, room, *flags):
        self.room, self.flags = room, flags
        self.store = room.path("store.db")
        self.port = 0
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [self.room.programs[0], "--listen", f"127.0.0.1:{self.port}", "--store", self.store, *self.flags],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=open(self.room.log, "a"))
        self.room.processes.append(self.process)
        line = self.process.stdout.readline().decode()
        expect(line.startswith("listening on 127.0.0.1:"), line)
        self.port = int(line.rsplit(":", 1)[1])

    def kill(self):
        self.process.kill()
        self.process.wait()

    def rows(self, query, *arguments):
        base = sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=DEADLINE_S)
        try:
            return base.execute(query, arguments).fetchall()
        finally:
            base.close()

    def acked(self, lane="telemetry", epoch=7, device="dev"):
        rows = self.rows("SELECT acked FROM lanes WHERE device = ? AND lane = ? AND epoch = ?", device, lane, epoch)
        return rows[0][0] if rows else 0


def offer(lane="telemetry", epoch=7, first=1, next_=1):
    return {"lane": lane, "epoch": epoch, "first": first, "next": next_}


class Device:
    """A greeted connection of a device."""

    def __init__(self, receiver, encoding="json", device="dev", lanes=None, boot="b1", token=None, last=None):
        self.ws = dial(receiver.port, encoding, token)
        expect(self.ws.picked == f"backhaul.v1.{encoding}", "picked", self.ws.picked)
        self.ws.say("hello", device=device, agent="peer/1.0.0", boot=boot, features=["x"],
                    lanes=[offer()] if lanes is None else lanes, commands=None, last=last)
        name, self.welcome = self.ws.hear()
        expect(name == "welcome", "hello is answered by", name)

    def records(self, *seqs, lane="telemetry", epoch=7, at=1_700_000_000_000, body=None, topic="t"):
        records = [{"seq": seq, "at": at, "topic": topic, "body": body or {"text": f"r{seq}"}} for seq in seqs]
        self.ws.say("records", lane=lane, epoch=epoch, records=records)
        return self

    def gap(self, from_, to, *lost, lane="telemetry", epoch=7):
        self.ws.say("gap", lane=lane, epoch=epoch, from_=from_, to=to,
                    lost=[{"why": why, "count": count} for why, count in lost])
        return self

    def acked(self, seq, lane="telemetry", epoch=7):
        """Waits for the ack of `seq`; none may come down, or beyond."""
        highest = 0
        while highest < seq:
            name, fields = self.ws.hear()
            expect(name == "ack", "expected an ack, not", name)
            if (fields["lane"], fields["epoch"]) == (lane, epoch):
                expect(highest < fields["seq"] <= seq, "ack", fields["seq"], "after", highest, "of", seq)
                highest = fields["seq"]
        return self

    def code(self):
        return self.ws.ended().code


@check
def the_tables_are_as_described(room):
    receiver = Receiver(room)
    columns = {
        "records": ["device", "lane", "epoch", "seq", "at", "topic", "body", "received"],
        "gaps": ["device", "lane", "epoch", "from", "to", "why", "count", "received"],
        "lanes": ["device", "lane", "epoch", "acked"],
    }
    keys = {
        "records": ["device", "lane", "epoch", "seq"],
        "gaps": ["device", "lane", "epoch", "from", "why"],
        "lanes": ["device", "lane", "epoch"],
    }
    for table, names in columns.items():
        info = receiver.rows(f"PRAGMA table_info({table})")
        expect([row[1] for row in info] == names, table, info)
        key = [row[1] for row in sorted(info, key=lambda row: row[5]) if row[5]]
        expect(key == keys[table], table, key)
    (sql,), = receiver.rows("SELECT sql FROM sqlite_master WHERE name = 'records'")
    expect("WITHOUT ROWID" in sql.upper() and re.search(r"\bbody\W+BLOB", sql, re.I), sql)


@check
def welcomes_in_full_and_stores_what_it_acks_in_both_encodings(room):
    receiver = Receiver(room)
    for encoding in ("json", "postcard"):
        device = Device(receiver, encoding, encoding, [offer(), offer("alarm", (1 << 53) - 1)])
        welcome = device.welcome
        expect(welcome["session"] and welcome["acked"] == [] and welcome["rejected"] == [], welcome)
        expect(abs(welcome["now"] - time.time() * 1000) < 60_000, welcome)
        expect(1024 <= welcome["message_bytes_max"] <= 1 << 20, welcome)
        begun = time.monotonic()
        device.records(1, 2, 3).acked(3)
        expect(time.monotonic() - begun < 5, "an ack after", time.monotonic() - begun)
        expect(receiver.acked(device=encoding) == 3, "acked before it is stored")
        device.records(4, at=None, body={"base64": base64.b64encode(bytes(range(256))).decode()}, topic="ü/\0").acked(4)
        device.records(1, lane="alarm", epoch=(1 << 53) - 1, body={"text": ""}).acked(1, "alarm", (1 << 53) - 1)
        rows = receiver.rows("SELECT lane, epoch, seq, at, topic, body, received FROM records WHERE device = ? "
                             "ORDER BY lane, seq", encoding)
        expect([row[:6] for row in rows] == [
            ("alarm", (1 << 53) - 1, 1, 1_700_000_000_000, "t", b""),
            ("telemetry", 7, 1, 1_700_000_000_000, "t", b"r1"),
            ("telemetry", 7, 2, 1_700_000_000_000, "t", b"r2"),
            ("telemetry", 7, 3, 1_700_000_000_000, "t", b"r3"),
            ("telemetry", 7, 4, None, "ü/\0", bytes(range(256))),
        ], rows)
        expect(all(abs(row[6] - time.time() * 1000) < 60_000 for row in rows), rows)
        device.ws.close()
    expect(receiver.acked() == 0, "lanes of a device that was never here")


@check
def acks_survive_a_kill_and_a_deletion_and_nothing_is_stored_twice(room):
    receiver = Receiver(room)
    Device(receiver, last="x").records(*range(1, 11)).acked(10)
    receiver.kill()
    receiver.start()
    base = sqlite3.connect(receiver.store, timeout=DEADLINE_S)
    base.execute("DELETE FROM records")
    base.commit()
    base.close()
    device = Device(receiver, lanes=[offer(first=5, next_=13)])
    expect(device.welcome["acked"] == [{"lane": "telemetry", "epoch": 7, "seq": 10}], device.welcome)
    device.records(11, 12).acked(12)
    expect(receiver.rows("SELECT seq FROM records") == [(11,), (12,)], "rows")
    # Another epoch and another device are other numberings.
    device.ws.close()
    device = Device(receiver, lanes=[offer(epoch=8)])
    expect(device.welcome["acked"] == [], device.welcome)
    device.records(1, epoch=8).acked(1, epoch=8)
    Device(receiver, device="other").records(1).acked(1)
    rows = receiver.rows("SELECT device, epoch, acked FROM lanes ORDER BY device, epoch")
    expect(rows == [("dev", 7, 12), ("dev", 8, 1), ("other", 7, 1)], rows)


@check
def a_copy_is_never_stored_over_the_first(room):
    receiver = Receiver(room)
    device = Device(receiver).records(1, 2, body={"text": "first"}).acked(2)
    device.ws.drop()
    device = Device(receiver)
    device.records(1, 2, body={"text": "second"})
    device.ws.close()
    Device(receiver).records(3).acked(3)
    bodies = [bytes(body) for body, in receiver.rows("SELECT body FROM records ORDER BY seq")]
    expect(bodies == [b"first", b"first", b"r3"], bodies)


@check
def the_newest_session_wins_and_the_older_gets_4009_with_its_boot(room):
    receiver = Receiver(room)
    older = Device(receiver, boot="old").records(1).acked(1)
    bystander = Device(receiver, device="bystander")
    newer = Device(receiver, "postcard", boot="new")
    closed = older.ws.ended()
    expect((closed.code, closed.reason) == (4009, "new"), closed)
    expect(newer.welcome["acked"] == [{"lane": "telemetry", "epoch": 7, "seq": 1}], newer.welcome)
    newer.records(2).acked(2)
    bystander.records(1).acked(1)
    # What was on its way is fenced: it is in, and in the welcome, or it never comes in.
    for turn in range(20):
        older, begin = newer, newer.welcome["acked"][0]["seq"] + 1 if turn else 3
        for seq in range(begin, begin + 5):
            older.records(seq)
        newer = Device(receiver, boot=f"b{turn}")
        acked = newer.welcome["acked"][0]["seq"]
        stored = receiver.rows("SELECT max(seq), count(*) FROM records WHERE device = 'dev'")
        expect(stored == [(acked, acked)], "welcomed with", acked, "while it has", stored)


@check
def gaps_are_rows_and_count_as_acked(room):
    receiver = Receiver(room)
    device = Device(receiver)
    device.gap(1, 10, ("overflow", 8), ("expired", 2)).records(11).gap(12, 12, ("torn", 0)).gap(13, 20, ("unknown", 0))
    device.gap(21, 21, ("corrupt", 1)).gap(22, 22, ("rejected", 1)).gap(23, 23, ("settled", 0)).acked(23)
    rows = receiver.rows('SELECT "from", "to", why, count FROM gaps ORDER BY "from", why')
    expect(rows == [(1, 10, "expired", 2), (1, 10, "overflow", 8), (12, 12, "torn", 0), (13, 20, "unknown", 0),
                    (21, 21, "corrupt", 1), (22, 22, "rejected", 1), (23, 23, "settled", 0)], rows)
    expect(receiver.acked() == 23, receiver.acked())


@check
def a_hole_and_whatever_is_out_of_place_end_with_1008(room):
    receiver = Receiver(room)
    cases = {
        "a hole": lambda device: device.records(2),
        "a hole inside": lambda device: device.records(1, 3),
        "going back inside": lambda device: device.records(1, 1),
        "seq 0": lambda device: device.records(0),
        "a hole by a gap": lambda device: device.gap(2, 3, ("overflow", 2)),
        "a second hello": lambda device: device.ws.say("hello", **{**HELLO, "device": "dev"}),
        "a lane not offered": lambda device: device.records(1, lane="other"),
        "an epoch not offered": lambda device: device.records(1, epoch=8),
    }
    for what, do in cases.items():
        device = Device(receiver)
        do(device)
        code = device.code()
        expect(code == 1008, what, "ends with", code)
    device = Device(receiver)
    device.gap(3, 1, ("overflow", 1))
    code = device.code()
    expect(code in (1002, 1008), "a gap backwards ends with", code)
    for name, fields in (("records", {"lane": "telemetry", "epoch": 7, "records": []}),
                         ("gap", {"lane": "telemetry", "epoch": 7, "from": 1, "to": 1, "lost": []}),
                         ("done", {"stream": 1, "seq": 1})):
        ws = dial(receiver.port)
        ws.say(name, **fields)
        code = ws.ended().code
        expect(code == 1008, name, "before the hello ends with", code)
    stored = receiver.rows("SELECT seq FROM records")
    expect(stored in ([], [(1,)]), stored)
    Device(receiver)


HELLO = {"device": "dev", "agent": "peer/1", "boot": "b", "features": [], "lanes": [offer()], "commands": None,
         "last": None}


@check
def what_cannot_be_decoded_ends_with_1002(room):
    receiver = Receiver(room)
    hello = json.dumps({"hello": HELLO}).encode()

    def without(key):
        return json.dumps({"hello": {name: value for name, value in HELLO.items() if name != key}}).encode()

    def but(**other):
        return json.dumps({"hello": {**HELLO, **other}}).encode()

    for payload in (b"garbage", b"", b"{}", b"[1]", b"\xff", b'{"hello":{}}', hello + b"{}", without("lanes"),
                    without("boot"), but(device=7), but(lanes=[{**offer(), "epoch": 1 << 53}]),
                    but(lanes=[{**offer(), "epoch": -1}]), but(lanes=[{**offer(), "epoch": 1.5}]),
                    but(lanes=[{**offer(), "lane": "No Such"}]), but(lanes=[{**offer(), "lane": ""}]),
                    b'{"x":' * 100_000):
        ws = dial(receiver.port)
        ws.frame(TEXT, payload)
        code = ws.ended().code
        expect(code == 1002 or (payload == b"\xff" and code == 1007), payload[:80], "ends with", code)
    for payload in (b"", encode(AGENT, "postcard", "hello", HELLO)[1][:-3], b"\x00" + b"\xff" * 30):
        ws = dial(receiver.port, "postcard")
        ws.frame(BINARY, payload)
        code = ws.ended().code
        expect(code == 1002, payload[:80], "ends with", code)
    ws = dial(receiver.port)
    ws.frame(BINARY, hello)
    expect(ws.ended().code in (1002, 1003), "a binary frame in JSON")
    device = Device(receiver)
    device.ws.frame(TEXT, b'{"records":{"lane":"telemetry","epoch":7,"records":[{"seq":1,"at":null,"topic":"t",'
                          b'"body":{"base64":"***"}}]}}')
    expect(device.code() == 1002, "a body that is no base64")
    device = Device(receiver)
    device.ws.frame(TEXT, b'{"records":{"lane":"telemetry","epoch":7,"records":[{"seq":1,"at":null,"topic":"t",'
                          b'"body":{"text":"a","base64":""}}]}}')
    expect(device.code() == 1002, "a body of two forms")
    expect("garbage" not in room.words(), "a body in the log")


@check
def options_left_out_are_null_unknown_messages_ignored_and_fragments_joined(room):
    receiver = Receiver(room)
    ws = dial(receiver.port)
    ws.frame(TEXT, b'{"hello":{"device":"dev","agent":"p/1","boot":"b","features":[],"lanes":[{"lane":"telemetry",'
                   b'"epoch":7,"first":1,"next":1}]}}')
    expect(ws.hear()[0] == "welcome", "no welcome")
    ws.frame(TEXT, b'{"frobnicate":[1,2,{"x":{}}]}')
    text = (b'{"records":{"lane":"telemetry","epoch":7,"records":[{"seq":1,"topic":"t","body":{"text":"x"}}]}}')
    ws.frame(TEXT, text[:30], fin=False)
    expect(ws.hear_all() == [], "an answer to half a message")
    ws.frame(CONT, text[30:31], fin=False)
    ws.frame(CONT, text[31:])
    expect(ws.hear() == ("ack", {"lane": "telemetry", "epoch": 7, "seq": 1}), "no ack")
    device = Device(receiver, "postcard", "dev2")
    device.ws.frame(BINARY, bytes([4]))
    device.ws.frame(BINARY, bytes([200, 1, 9, 9]))
    device.records(1).acked(1)


@check
def large_batches_pass_and_what_is_above_the_maximum_does_not(room):
    receiver = Receiver(room)
    device = Device(receiver)
    limit = device.welcome["message_bytes_max"]
    empty = len(encode(AGENT, "json", "records", {"lane": "telemetry", "epoch": 7, "records": [
        {"seq": 1, "at": 1_700_000_000_000, "topic": "t", "body": {"text": ""}}]})[1])
    device.records(1, body={"text": "x" * (limit - empty)}).acked(1)
    device.records(2, body={"text": "x" * (limit - empty + 1)})
    closed = device.ws.ended()
    expect(closed.code in (1002, 1008, 1009, None), "too large ends with", closed.code)
    expect(receiver.acked() == 1, receiver.acked())
    Device(receiver).records(*range(2, 5002)).acked(5001)


@check
def tokens_are_bound_to_devices(room):
    tokens = room.write("tokens", "dev t1\nother t2\n* any\n")
    receiver = Receiver(room, "--token-file", tokens)
    for token in (None, "t3", "t", "t11", "any "[:2]):
        try:
            dial(receiver.port, token=token)
            expect(False, "let in with", token)
        except Refused as refused:
            expect(refused.status == 401, token, "gives", refused.status)
    Device(receiver, token="t1").records(1).acked(1)
    Device(receiver, token="any", device="someone").records(1).acked(1)
    ws = dial(receiver.port, token="t2")
    ws.say("hello", **HELLO)
    expect(ws.ended().code == 3003, "a token of another device")
    # The owner's session lives on: the stranger was refused before any takeover.
    owner = Device(receiver, token="t1")
    ws = dial(receiver.port, token="t2")
    ws.say("hello", **HELLO)
    ws.ended()
    owner.records(2).acked(2)
    expect(not any(token in room.words() for token in ("t1", "t2 ")), "a token in the log")


@check
def dialects_it_does_not_speak_are_refused_and_any_path_will_do(room):
    receiver = Receiver(room)
    for protocols in (None, "mqtt", "backhaul.v2.json"):
        try:
            ws = dial(receiver.port, protocols=protocols)
            expect(ws.picked is None, protocols, "is answered by", ws.picked)
            ws.drop()
        except Refused as refused:
            expect(400 <= refused.status < 500, protocols, "gives", refused.status)
    expect(dial(receiver.port, protocols="mqtt, backhaul.v1.json").picked == "backhaul.v1.json", "not found in a list")
    both = dial(receiver.port, protocols="backhaul.v1.postcard, backhaul.v1.json", path="/any/path?x=1")
    expect(both.picked in ("backhaul.v1.postcard", "backhaul.v1.json"), both.picked)


@check
def dead_sessions_are_freed_and_living_ones_pinged(room):
    receiver = Receiver(room, "--ping-interval-ms", "50")
    dead = Device(receiver)
    dead.ws.answers_pings = False
    closed = dead.ws.ended()
    expect(dead.ws.pings >= 1, "closed without a ping", closed)
    living = Device(receiver, device="living")
    while living.ws.pings < 8:
        try:
            living.ws.hear(0.02)
        except TimeoutError:
            pass
    living.records(1).acked(1)


@check
def acks_come_within_a_second_under_a_trickle_and_sigterm_stores_what_was_taken(room):
    receiver = Receiver(room)
    device = Device(receiver)
    for seq in range(1, 21):
        begun = time.monotonic()
        device.records(seq).acked(seq)
        expect(time.monotonic() - begun < 5, "an ack after", time.monotonic() - begun)
    device.records(*range(21, 521))
    device.ws.hear_all()
    receiver.process.send_signal(signal.SIGTERM)
    closed = device.ws.ended()
    expect(receiver.process.wait(DEADLINE_S) == 0, "SIGTERM gives", receiver.process.returncode)
    expect(closed.code in (1001, 1012, None), "SIGTERM closes with", closed.code)
    expect(receiver.acked() == 520 or receiver.acked() == 20, receiver.acked())
    (count,), = receiver.rows("SELECT count(*) FROM records")
    expect(count == receiver.acked(), count, receiver.acked())


@check
def a_second_receiver_on_the_same_store_is_refused(room):
    receiver = Receiver(room)
    code, _, words = room.run("--listen", "127.0.0.1:0", "--store", receiver.store)
    expect(code not in (0, 101) and words.strip(), code, words)
    Device(receiver).records(1).acked(1)


if __name__ == "__main__":
    main(["RECEIVER"])
