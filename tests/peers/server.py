"""An upstream that has only read docs/protocol.md, against the agent: what the agent says, what it bears, and what
each answer makes it do.

    python3 tests/peers/server.py target/debug/backhaul [CHECK...]
"""

import json
import time

from rig import Agent, Local, Server, check, eventually, main
from wire import BINARY, CONT, TEXT, Closed, check as check_type, expect


class Session:
    """One greeted connection. Refuses a hole, and whatever the hello has not named."""

    def __init__(self, server, encoding="json", acked=None, welcome=True, **more):
        self.ws = server.upgrade().accept(encoding)
        name, self.hello = self.ws.hear()
        expect(name == "hello", "first message is", name)
        self.next = {}
        self.records = {}
        self.batches = []
        self.gaps = []
        for lane in self.hello["lanes"]:
            expect(1 <= lane["first"] <= lane["next"], "offer", lane)
            self.next[lane["lane"], lane["epoch"]] = None
        expect(len(self.next) == len(self.hello["lanes"]), "a lane and epoch offered twice", self.hello)
        if welcome:
            self.welcome(acked, **more)

    def welcome(self, acked=None, **more):
        """`acked`: {lane: seq} or {(lane, epoch): seq}; else all is acked below what is offered."""
        positions = []
        for lane in self.hello["lanes"]:
            pair = lane["lane"], lane["epoch"]
            seq = lane["first"] - 1
            if acked is not None:
                seq = acked.get(pair, acked.get(lane["lane"], 0))
            self.next[pair] = seq + 1
            if seq:  # absent is 0
                positions.append({"lane": pair[0], "epoch": pair[1], "seq": seq})
        self.ws.say("welcome", **{"session": "s", "features": [], "now": int(time.time() * 1000),
                                  "message_bytes_max": 1 << 20, "acked": positions, "rejected": [],
                                  "command_stream": 1, **more})

    def take(self, name, fields):
        """Checks rule 3 and remembers."""
        if name == "done":
            return
        expect(name in ("records", "gap"), "a second", name)
        pair = fields["lane"], fields["epoch"]
        expect(self.next.get(pair) is not None, pair, "is none of the hello's:", list(self.next))
        if name == "gap":
            expect(fields["from"] == self.next[pair] <= fields["to"], "expected", self.next[pair], "not gap", fields)
            expect(fields["lost"], "a gap without a reason")
            self.next[pair] = fields["to"] + 1
            self.gaps.append(fields)
            return
        expect(fields["records"], "a batch of no record")
        self.batches.append(len(fields["records"]))
        for record in fields["records"]:
            expect(record["seq"] == self.next[pair], "expected", self.next[pair], "not", record["seq"])
            self.next[pair] += 1
            self.records[pair + (record["seq"],)] = record

    def until(self, seq, lane="telemetry", within=30):
        """Hears until everything below and at `seq` has come."""
        pair = self.pair(lane)
        while self.next[pair] <= seq:
            self.take(*self.ws.hear(within))
        return self

    def settle(self):
        """Hears what has been sent by now."""
        for name, fields in self.ws.hear_all():
            self.take(name, fields)
        return self

    def pair(self, lane="telemetry"):
        return [pair for pair in self.next if pair[0] == lane][-1]

    def epoch(self, lane="telemetry"):
        return self.pair(lane)[1]

    def drop(self):
        self.ws.drop()

    def offer(self, lane="telemetry"):
        return [each for each in self.hello["lanes"] if each["lane"] == lane][-1]

    def texts(self, lane="telemetry"):
        return [record["body"]["text"] for (name, _, _), record in sorted(self.records.items()) if name == lane]

    def ack(self, seq, lane="telemetry"):
        self.ws.say("ack", lane=lane, epoch=self.epoch(lane), seq=seq)

    def fails(self):
        """The session ends by the agent: with which code."""
        return self.ws.ended().code


def renewed(server, old):
    """The first session that offers telemetry in another epoch: until it is drawn, a hello may leave the lane out."""
    while True:
        session = Session(server, acked={("telemetry", old): 3})
        if session.next:
            return session
        session.ws.ended()


def acked(agent, seq, lane="telemetry"):
    eventually(f"acked is {seq}", lambda: agent.lane(lane)["acked"] == seq)


@check
def asks_for_an_upgrade_with_both_encodings_in_order_and_its_token(room):
    server = Server()
    token = room.write("token", "s3cret\n")
    agent = Agent(room, server, endpoint=f'token_file = "{token}"', encodings='["postcard", "json"]')
    upgrade = server.upgrade()
    expect(upgrade.line == "GET /v1 HTTP/1.1", upgrade.line)
    expect(upgrade.offered == ["backhaul.v1.postcard", "backhaul.v1.json"], upgrade.offered)
    expect(upgrade.headers.get("authorization") == "Bearer s3cret", upgrade.headers)
    expect(upgrade.headers.get("host") == f"127.0.0.1:{server.port}", upgrade.headers)
    expect("s3cret" not in room.words(), "the token is in the log")
    upgrade.sock.close()
    agent.kill()


@check
def says_hello_in_full_and_nothing_more_before_the_welcome(room):
    server = Server()
    agent = Agent(room, server, lanes='[[lane]]\nname = "a_1"\n[[lane]]\nname = "b-2"\ndefault = true\n')
    agent.put(lane="a_1")
    agent.put(count=3)
    session = Session(server, welcome=False)
    expect(session.ws.hear_all() == [], "something before the welcome")
    hello = session.hello
    expect(hello["device"] == "peer", hello)
    code, version, _ = room.run("--version")
    expect(code == 0 and hello["agent"] == "backhaul/" + version.split()[1], hello["agent"], version)
    expect(hello["boot"] and hello["last"] is None and hello["commands"] is None, hello)
    offers = {lane["lane"]: (lane["first"], lane["next"]) for lane in hello["lanes"]}
    expect(offers.keys() == {"a_1", "b-2"}, offers)
    expect(all(first == 1 for first, _ in offers.values()), offers)
    agent.put(lane="a_1")
    session.welcome()
    session.until(2, "a_1").until(3, "b-2")
    session.drop()
    again = Session(server)
    expect(again.hello["boot"] == hello["boot"], "another boot without a start")
    expect(type(again.hello["last"]) is str and again.hello["last"], "no class of what ended the session", again.hello)
    expect([lane["epoch"] for lane in again.hello["lanes"]] == [lane["epoch"] for lane in hello["lanes"]], "epochs")
    again.drop()
    agent.kill()
    agent.start()
    third = Session(server)
    expect(third.hello["boot"] != hello["boot"], "the same boot after a start")
    expect(third.epoch("b-2") == again.epoch("b-2"), "another epoch after a kill")


@check
def carries_records_in_both_encodings_as_they_were_put(room):
    for encoding in ("json", "postcard"):
        server = Server()
        agent = Agent(room, server, encodings=f'["{encoding}"]')
        before = int(time.time() * 1000)
        first = agent.put("grüße \0 \n \"", topic="a/ü")[0]
        agent.put(base64="AP+A", at=1_700_000_000_123)
        agent.put("")
        agent.put("y", count=500)
        session = Session(server, encoding).until(first + 502)
        (one, two, three), epoch = ([session.records["telemetry", session.epoch(), first + n] for n in range(3)],
                                    session.epoch())
        expect(one["topic"] == "a/ü" and one["body"] == {"text": "grüße \0 \n \""}, one)
        expect(before <= one["at"] <= int(time.time() * 1000), one)
        expect(two["at"] == 1_700_000_000_123 and two["body"] == {"base64": "AP+A"}, two)
        expect(three["body"] == {"text": ""}, three)
        session.ack(first + 502)
        acked(agent, first + 502)
        session.ack(first)  # lower: ignored
        agent.put("z")
        session.until(first + 503).ack(first + 503)
        acked(agent, first + 503)
        expect(agent.lane()["epoch"] == epoch, agent.lane())
        expect(agent.status()["link"]["sessions"] == 1, "the session has not lived on")
        agent.kill()


@check
def unknown_messages_are_ignored_and_fragments_put_together(room):
    server = Server()
    agent = Agent(room, server)
    session = Session(server)
    session.ws.frame(TEXT, b'{"frobnicate":{"deep":[1,{"x":null}]}}')
    session.ws.frame(TEXT, b'{"frobnicate":null}')
    agent.put(count=2)
    session.until(2)
    ack = json.dumps({"ack": {"lane": "telemetry", "epoch": session.epoch(), "seq": 2}}).encode()
    session.ws.frame(TEXT, ack[:9], fin=False)
    session.ws.frame(0x9, b"between")
    session.ws.frame(CONT, ack[9:11], fin=False)
    session.ws.frame(CONT, ack[11:])
    acked(agent, 2)
    session.ws.say("retry", after_ms=0, spread_ms=0, endpoint=None)
    session.fails()
    agent.kill()
    agent = Agent(room, server, encodings='["postcard"]')
    session = Session(server, "postcard")
    session.ws.frame(BINARY, bytes([9, 1, 2, 3]))
    agent.put()
    session.until(3).ack(3)
    acked(agent, 3)


@check
def what_cannot_be_decoded_ends_it_with_1002_and_what_is_out_of_place_with_1008(room):
    server = Server()
    agent = Agent(room, server)
    ack = {"lane": "telemetry", "epoch": 1, "seq": 1}
    welcome = {"session": "s", "features": [], "now": 0, "message_bytes_max": 1 << 20, "acked": [], "rejected": [],
               "command_stream": 1}
    undecodable = [
        b"garbage", b"", b"[]", b"{}", b'"welcome"', b"\xff\xfe", b'{"ack":{}}', b'{"ack":null}',
        b'{"pace":{"records_per_s":-1}}', b'{"pace":{"records_per_s":1.5}}', b'{"pace":{"records_per_s":"1"}}',
        b'{"pace":{"records_per_s":9007199254740992}}', b'{"pace":{"records_per_s":1}} {}',
        b'{"retry":{"after_ms":1}}', json.dumps({"ack": {**ack, "lane": 7}}).encode(),
        json.dumps({"ack": ack, "pace": {"records_per_s": 0}}).encode(),
        b'{"x":' * 100_000,
    ]
    for payload in undecodable:
        session = Session(server)
        session.ws.frame(TEXT, payload)
        code = session.fails()
        # RFC 6455 8.1 has a code of its own for text that is no UTF-8.
        expect(code == 1002 or (payload == b"\xff\xfe" and code == 1007), payload[:60], "ended with", code)
    session = Session(server)
    session.ws.frame(BINARY, b'{"pace":{"records_per_s":1}}')
    code = session.fails()
    expect(code in (1002, 1003), "a binary frame in a JSON session ended with", code)
    session = Session(server)
    expect(session.hello["last"] is not None, session.hello)
    session.ws.say("welcome", **welcome)
    code = session.fails()
    expect(code == 1008, "a second welcome ended with", code)
    for name, fields in (("ack", ack), ("reject", {**ack, "reason": "r"}), ("pace", {"records_per_s": 1}),
                         ("command", {"seq": 1, "topic": "t", "body": {"text": ""}})):
        session = Session(server, welcome=False)
        session.ws.say(name, **fields)
        code = session.fails()
        expect(code == 1008, name, "before the welcome ended with", code)
    expect("garbage" not in room.words(), "a body in the log")
    session = Session(server)
    agent.put()
    session.until(1).ack(1)
    acked(agent, 1)


@check
def a_missing_option_is_null_and_a_retry_before_the_welcome_is_understood(room):
    server = Server()
    agent = Agent(room, server)
    session = Session(server)
    session.ws.frame(TEXT, b'{"retry":{"after_ms":1,"spread_ms":1}}')
    code = session.fails()
    expect(code not in (1002, 1008), "a retry without endpoint ended with", code)
    Session(server)
    agent.kill()


@check
def retry_is_obeyed_spread_capped_and_its_endpoint_checked(room):
    first, second = Server(), Server()
    agent = Agent(room, first, second, server_wait_ms_max=600)
    waits = []
    session = Session(first)
    for _ in range(5):
        session.ws.say("retry", after_ms=200, spread_ms=300, endpoint=None)
        begun = time.monotonic()
        session.fails()
        session = Session(first)
        waits.append(time.monotonic() - begun)
    expect(min(waits) >= 0.199, "too early:", waits)
    expect(max(waits) - min(waits) > 0.01, "not spread:", waits)
    session.ws.say("retry", after_ms=10**12, spread_ms=0, endpoint="ws://127.0.0.1:9/elsewhere")
    begun = time.monotonic()
    session.fails()
    session = Session(first)
    waited = time.monotonic() - begun
    expect(0.599 <= waited < 5, "the cap of 600 ms became", waited)
    session.ws.say("retry", after_ms=50, spread_ms=0, endpoint=second.url)
    session.fails()
    Session(second)
    expect(agent.process.poll() is None, "left")


@check
def pace_is_kept_until_it_is_lifted(room):
    server = Server()
    agent = Agent(room, server)
    session = Session(server)
    session.ws.say("pace", records_per_s=50)
    session.settle()
    begun = time.monotonic()
    agent.put(count=400)
    session.until(100)
    took = time.monotonic() - begun
    so_far = session.next[session.pair()] - 1
    # A burst of a second is a fair reading of "below this"; more is not.
    expect(so_far <= 50 * (took + 1), so_far, "records in", took, "s at 50 a second")
    session.ws.say("pace", records_per_s=0)
    session.until(400).ack(400)
    acked(agent, 400)
    # Until disconnected: the next session knows no pace.
    session.ws.say("pace", records_per_s=1)
    session.settle()
    session.drop()
    session = Session(server)
    agent.put(count=300)
    session.until(700, within=20)


@check
def the_window_bounds_what_is_in_flight(room):
    server = Server()
    agent = Agent(room, server, window_records=10)
    agent.put(count=50)
    session = Session(server).until(10).settle()
    expect(len(session.records) == 10, len(session.records), "in flight")
    while len(session.records) < 50:
        session.ack(session.next[session.pair()] - 1)
        before = len(session.records)
        session.until(before + 1).settle()
        expect(len(session.records) <= before + 10, len(session.records), "after an ack of", before)


@check
def no_ack_in_time_is_stalled_and_halves_the_batches_down_to_one(room):
    server = Server()
    agent = Agent(room, server, ack_timeout_ms=300)
    agent.put(count=64)
    session = Session(server).until(64)
    largest = max(session.batches)
    code = session.fails()
    for _ in range(10):
        session = Session(server)
        expect(session.hello["last"] == "stalled", "last is", session.hello["last"], "after", code)
        expect(session.offer() == {"lane": "telemetry", "epoch": session.epoch(), "first": 1, "next": 65},
               session.hello)
        session.until(64)
        expect(max(session.batches) <= max(1, largest // 2), session.batches, "after", largest)
        largest = max(session.batches)
        if largest == 1:
            break
        session.fails()
    expect(largest == 1, "batches of", largest)
    expect(not session.gaps, session.gaps)
    session.ack(64)
    acked(agent, 64)


@check
def rule_7_a_server_that_lost_its_state_gets_a_settled_gap(room):
    server = Server()
    agent = Agent(room, server)
    agent.put(count=5)
    session = Session(server).until(5)
    session.ack(5)
    acked(agent, 5)
    session.drop()
    agent.put("six")
    session = Session(server, acked={"telemetry": 2})
    expect(session.offer()["first"] == 6, session.hello)
    session.until(6)
    expect([(gap["from"], gap["to"], gap["lost"]) for gap in session.gaps]
           == [(3, 5, [{"why": "settled", "count": 0}])], session.gaps)
    expect("six" in session.texts(), session.texts())
    session.until(6).settle()
    last = session.next[session.pair()] - 1
    session.ack(last)
    acked(agent, last)
    # Absent is 0: the whole of it is settled.
    session.drop()
    session = Session(server, acked={}).until(last)
    expect(session.gaps and session.gaps[0]["from"] == 1 and session.gaps[-1]["to"] == last, session.gaps)
    expect(agent.lane()["epoch"] == session.epoch(), "a new epoch for nothing")


@check
def rule_7_what_acks_more_than_we_have_gets_a_new_epoch(room):
    server = Server()
    agent = Agent(room, server)
    agent.put("a", count=5)
    session = Session(server).until(5)
    session.ack(3)
    acked(agent, 3)
    old = session.epoch()
    session.ack(1000)
    session.fails()
    session = renewed(server, old)
    expect(session.epoch() != old, "an ack beyond: the same epoch goes on", session.hello)
    expect(len(session.next) == 1, "the disowned epoch is still offered", session.hello)
    expect(session.offer()["first"] == 1, session.hello)
    session.until(2)
    expect(session.texts()[:2] == ["a", "a"], "not all it holds is offered:", session.records)
    second = session.epoch()
    session.drop()
    # The same by a welcome, and durably: a kill later it is still the new one.
    session = Session(server, acked={"telemetry": 1_000_000})
    session.fails()
    session = renewed(server, second)
    third = session.epoch()
    expect(third not in (old, second), "acked beyond in a welcome: the same epoch goes on")
    session.until(2)
    agent.kill()
    agent.start()
    session = Session(server)
    expect(session.epoch() == third, "the new epoch was not durable")
    session.until(2)
    expect(session.texts()[:2] == ["a", "a"], session.records)
    last = session.settle().next[session.pair()] - 1
    session.ack(last)
    acked(agent, last)


@check
def an_ack_beyond_what_was_sent_is_not_believed_even_when_it_exists(room):
    server = Server()
    agent = Agent(room, server, window_records=4)
    agent.put(count=20)
    session = Session(server).until(4).settle()
    old = session.epoch()
    session.ack(12)  # committed, never sent on any connection
    session.fails()
    session = renewed(server, old)
    expect(session.epoch() != old, "the same epoch goes on", session.hello)
    session.until(4).ack(4)
    agent.kill()


@check
def a_rejected_record_is_counted_once_and_the_lane_goes_on(room):
    server = Server()
    agent = Agent(room, server)
    agent.put(count=3)
    session = Session(server).until(3)
    refusal = {"lane": "telemetry", "epoch": session.epoch(), "seq": 2, "reason": "not today"}
    session.ws.say("reject", **refusal)
    session.ws.say("reject", **refusal)
    session.settle()
    session.drop()
    # It was stored before its ack got lost: the welcome says both again.
    session = Session(server, acked={"telemetry": 2}, rejected=[refusal])
    session.until(3)
    session.ack(3)
    acked(agent, 3)
    expect(agent.lane()["rejected"] == 1, "rejected is", agent.lane()["rejected"])
    agent.put()
    session.until(4).ack(4)
    acked(agent, 4)


SMALL = '[[lane]]\nname = "telemetry"\nbytes_max = 65536\n'


@check
def an_overflow_is_a_gap_that_is_repeated_until_it_is_acked(room):
    server = Server()
    agent = Agent(room, server, lanes=SMALL, segment_bytes=16_384, record_bytes_max=4096)
    seqs = agent.put("x" * 1000, count=300)
    expect(seqs == list(range(1, 301)), seqs)
    lost = agent.lane()["overflowed"]
    expect(0 < lost < 300, agent.lane())
    for _ in range(2):
        session = Session(server)
        expect(session.offer()["first"] == 1, "a gap not yet acked is not counted in", session.hello)
        session.until(300)
        expect([(gap["from"], gap["to"], gap["lost"]) for gap in session.gaps]
               == [(1, lost, [{"why": "overflow", "count": lost}])], session.gaps, lost)
        expect(len(session.records) == 300 - lost, len(session.records))
        session.drop()
    session = Session(server).until(300)
    session.ack(lost)
    acked(agent, lost)
    session.drop()
    session = Session(server)
    expect(session.offer()["first"] == lost + 1, session.hello)
    session.until(300)
    expect(not session.gaps, session.gaps)


@check
def a_gap_never_covers_what_was_sent_on_this_connection(room):
    server = Server()
    agent = Agent(room, server, lanes=SMALL, segment_bytes=16_384, record_bytes_max=4096, window_records=20)
    agent.put("x" * 1000, count=20)
    session = Session(server).until(20)
    agent.put("x" * 1000, count=300)
    session.settle()
    expect(len(session.records) == 20, len(session.records))
    session.ack(20)
    # The session's own bookkeeping refuses a gap that does not start at 21.
    while sum(count["count"] for gap in session.gaps for count in gap["lost"]) + len(session.records) < 320:
        session.take(*session.ws.hear())
        session.ack(session.next[session.pair()] - 1)
    expect(session.next[session.pair()] == 321, session.next)
    acked(agent, 320)


@check
def message_bytes_max_is_obeyed_and_what_alone_is_above_it_is_a_rejected_gap(room):
    for encoding in ("json", "postcard"):
        server = Server()
        agent = Agent(room, server, encodings=f'["{encoding}"]')
        begin = agent.put("x" * 500, count=20)[0]
        agent.put("big" * 3000)
        agent.put(base64="AAAA" * 20)
        last = agent.put("y" * 500, count=20)[-1]
        before = agent.lane()["rejected"]
        session = Session(server, encoding, message_bytes_max=4096).until(last)
        expect(session.ws.bytes_max_seen <= 4096, "a message of", session.ws.bytes_max_seen)
        expect([(gap["from"], gap["to"], gap["lost"]) for gap in session.gaps]
               == [(begin + 20, begin + 20, [{"why": "rejected", "count": 1}])], session.gaps)
        ours = [record for record in session.records.values() if not record["topic"].startswith("$")]
        expect(len(ours) == 41, len(ours))
        session.ack(last)
        acked(agent, last)
        expect(agent.lane()["rejected"] == before + 1, agent.lane())
        expect(agent.term() == 0, "SIGTERM gives", agent.process.returncode)


@check
def refusals_before_the_upgrade_have_a_class_each(room):
    server = Server()
    agent = Agent(room, server)
    seen = {}

    def failure(do):
        before = agent.status()["link"]["failures"]
        do(server.upgrade())

        def grown():
            after = agent.status()["link"]["failures"]
            return [name for name in after if after[name] > before.get(name, 0)]

        return eventually("a failure is counted", grown)[0]

    for status in ("401 Unauthorized", "403 Forbidden", "429 Too Many", "503 Busy", "404 Not Found",
                   "426 Upgrade Required", "500 Oops", "302 Found"):
        seen[status[:3]] = failure(lambda upgrade: upgrade.refuse(status))
    seen["no protocol"] = failure(lambda upgrade: upgrade.accept(protocol=None))
    seen["other protocol"] = failure(lambda upgrade: upgrade.accept(protocol="mqtt"))
    seen["closed"] = failure(lambda upgrade: upgrade.sock.close())
    expect(seen["401"] == seen["403"], seen)
    expect(seen["429"] == seen["503"], seen)
    expect(seen["404"] == seen["426"] == seen["302"] == seen["no protocol"], seen)
    expect(len({seen[name] for name in ("401", "429", "404", "500")}) == 4, seen)
    begun = time.monotonic()
    server.upgrade().refuse("503 Busy", Retry_After="1")
    server.upgrade().refuse("429 Busy", Retry_After="0")
    waited = time.monotonic() - begun
    expect(waited >= 0.95, "Retry-After of 1 s became", waited)
    begun = time.monotonic()
    now, then = "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"
    server.upgrade().refuse("503 Busy", Date=now, Retry_After=then)
    session = Session(server)
    waited = time.monotonic() - begun
    expect(0.95 <= waited < 10, "a date 1 s after the answer's became", waited)
    agent.put()
    session.until(1).ack(1)
    acked(agent, 1)


@check
def close_codes_are_told_apart(room):
    server = Server()
    agent = Agent(room, server)
    last = {}
    session = Session(server)
    for code in (1001, 1011, 1012, 1013, 3000, 3003, 4001, 4009, 4321):
        session.ws.close(code, session.hello["boot"] if code == 4009 else "")
        session = Session(server)
        last[code] = session.hello["last"]
    expect(all(type(each) is str for each in last.values()), last)
    expect(last[3000] == last[4001] == last[3003], last)
    expect(len({last[1011], last[1013], last[3000], last[4009]}) == 4, last)
    expect(last[1001] == last[1011] == last[1012] == last[4321], last)
    agent.kill()


@check
def replaced_again_and_again_is_a_suspected_clone(room):
    server = Server()
    agent = Agent(room, server, slow_ms_min=600, slow_ms_max=600)
    began = time.monotonic()
    for _ in range(20):
        Session(server).ws.close(4009, "another boot")
        begun = time.monotonic()
        upgrade = server.upgrade()
        waited = time.monotonic() - begun
        upgrade.sock.close()
        if waited > 0.5:
            break
    expect(waited > 0.5, "never slow in", time.monotonic() - began, "s")
    expect("clone" in room.words(), "not loud")
    expect(room.words().count("WARN") or room.words().count("ERROR"), "not loud")


@check
def silence_ends_a_session_and_pings_keep_it(room):
    server = Server()
    agent = Agent(room, server, heartbeat_ms=100)
    session = Session(server)
    while session.ws.pings < 3:
        try:
            session.ws.hear(0.05)
        except TimeoutError:
            pass
    expect(agent.status()["link"]["sessions"] == 1, "answered pings do not keep the session")
    session.ws.answers_pings = False
    session.ws.ended()
    expect(session.ws.pings >= 4, "no ping before the end")
    expect(Session(server).hello["last"], "no class")
    agent.kill()


@check
def no_welcome_within_the_handshake_timeout_is_a_failed_attempt(room):
    server = Server()
    agent = Agent(room, server, handshake_timeout_ms=300)
    for _ in range(2):
        session = Session(server, welcome=False)
        session.ws.ended()
    sock = server.upgrade()  # upgraded never
    again = server.upgrade()
    sock.sock.close()
    again.sock.close()
    status = agent.status()["link"]
    expect(status["sessions"] == 0 and sum(status["failures"].values()) >= 3, status)


@check
def a_command_is_done_when_nobody_subscribes(room):
    server = Server()
    agent = Agent(room, server, tail="")
    session = Session(server)
    session.ws.say("command", seq=1, topic="valve/1", body={"text": "open"})
    agent.put()
    session.until(1).ack(1)
    acked(agent, 1)
    expect(agent.status()["link"]["sessions"] == 1, "a command ended the session")
    expect(agent.status()["commands"]["received"] == 1, agent.status()["commands"])


@check
def delivered_comes_when_it_is_acked_and_not_before(room):
    server = Server()
    agent = Agent(room, server)
    session = Session(server)
    local = Local(agent.socket)
    local.send('{"put":{"text":"1","wait":"delivered","id":7}}\n{"put":{"text":"2","id":8}}\n')
    answer = local.answer()
    check_type((("committed", (("lane", "str"), ("epoch", "int"), ("seq", "int"), ("id", "int"))),), answer, "answer")
    expect(answer["committed"]["id"] == 8 and answer["committed"]["seq"] == 2, answer)
    session.until(2).ack(1)
    answer = local.answer()
    check_type((("delivered", (("lane", "str"), ("epoch", "int"), ("seq", "int"), ("id", "int"))),), answer, "answer")
    expect(answer["delivered"]["id"] == 7 and answer["delivered"]["seq"] == 1, answer)
    # Many at once, in one ack.
    local.send("".join('{"put":{"text":"3","wait":"delivered","id":%d}}\n' % each for each in range(20)))
    session.until(22).ack(22)
    ids = [local.answer()["delivered"]["id"] for _ in range(20)]
    expect(sorted(ids) == list(range(20)), ids)


@check
def the_lanes_are_independent(room):
    server = Server()
    agent = Agent(room, server, lanes='[[lane]]\nname = "alarm"\n[[lane]]\nname = "bulk"\ndefault = true\n',
                  window_records=50)
    agent.put("b", count=200)
    agent.put("a", count=20, lane="alarm")
    session = Session(server)
    while session.next[session.pair("bulk")] <= 200 or session.next[session.pair("alarm")] <= 20:
        name, fields = session.ws.hear()
        session.take(name, fields)
        session.ack(session.next[session.pair(fields["lane"])] - 1, fields["lane"])
    acked(agent, 200, "bulk")
    acked(agent, 20, "alarm")
    expect(agent.term() == 0, "SIGTERM gives", agent.process.returncode)


if __name__ == "__main__":
    main(["AGENT"])
