"""A program that has only read "Local socket" and "Status" in the documentation, against the agent's socket: by raw
lines, good and bad.

    python3 tests/peers/local.py target/debug/backhaul [CHECK...]
"""

import json
import os
import stat

from rig import Agent, Local, check, eventually, main
from wire import check as check_type, expect

ERROR = (("code", "str"), ("message", "str"))
WORD = (("lane", "str"), ("epoch", "int"), ("seq", "int"))
CODES = {"bad_request", "unknown_lane", "too_large", "full", "degraded", "busy", "shutting_down"}
ID = object()


def agent_alone(room, **settings):
    """An agent whose upstream is nowhere."""
    class Nowhere:
        url = "ws://127.0.0.1:9/"
    return Agent(room, Nowhere, **settings)


def is_error(answer, code, id_=ID):
    expect(list(answer) == ["error"], "no error:", answer)
    error = dict(answer["error"])
    expect(error.pop("id", ID) == id_, "id", answer)
    check_type(ERROR, error, "error")
    expect(error["code"] in CODES and error["message"], answer)
    expect(error["code"] == code, "expected", code, "not", answer)


def is_word(answer, word, seq, id_=ID):
    expect(list(answer) == [word], "expected", word, "not", answer)
    fields = dict(answer[word])
    expect(fields.pop("id", ID) == id_, "id", answer)
    check_type(WORD, fields, word)
    expect(fields["seq"] == seq, "expected", seq, "not", answer)


LANES = """
[[lane]]
name = "telemetry"
default = true
[[lane]]
name = "grouped"
commit = "group"
"""


@check
def every_form_of_a_put_has_its_answer(room):
    agent = agent_alone(room, lanes=LANES)
    local = Local(agent.socket)
    is_word(local.ask('{"put":{"lane":"telemetry","topic":"boiler/temp","text":"21.5"}}'), "committed", 1)
    is_word(local.ask('{"put":{"text":"21.5"}}'), "committed", 2)
    is_word(local.ask('{"put":{"text":"x","wait":"committed"}}'), "committed", 3)
    is_word(local.ask('{"put":{"text":"x","wait":"accepted"}}'), "accepted", 4)
    is_word(local.ask('{"put":{"lane":"grouped","text":"x"}}'), "accepted", 1)
    is_word(local.ask('{"put":{"lane":"grouped","text":"x","wait":"committed"}}'), "committed", 2)
    is_word(local.ask('{"put":{"base64":"AP8=","at":0,"ttl_s":60,"key":"k","id":7}}'), "committed", 5, 7)
    is_word(local.ask('{"put":{"base64":"","id":"seven"}}'), "committed", 6, "seven")
    is_word(local.ask('{"put":{"text":"","topic":"","at":9007199254740991}}'), "committed", 7)
    is_word(local.ask('  { "put" : { "text" : "spaced" } }\r'), "committed", 8)
    is_word(local.ask('{"put":{"text":"\\u0000\\ud83d\\ude00","topic":"a\\u0000b"}}'), "committed", 9)


@check
def delivered_needs_an_id_and_goes_beyond_the_order(room):
    agent = agent_alone(room)
    local = Local(agent.socket)
    is_error(local.ask('{"put":{"text":"x","wait":"delivered"}}'), "bad_request")
    local.send('{"put":{"text":"1","wait":"delivered","id":1}}\n{"put":{"text":"2","id":2}}\n{"status":{"id":3}}\n')
    is_word(local.answer(), "committed", 2, 2)
    status = local.answer()
    expect(status["status"]["id"] == 3, "the id of a status is not repeated")


@check
def every_bad_line_gets_its_error_and_the_connection_lives_on(room):
    agent = agent_alone(room)
    local = Local(agent.socket)
    cases = [
        ("garbage", "bad_request"), ("{", "bad_request"), ("[]", "bad_request"), ("null", "bad_request"),
        ("1", "bad_request"), ('"put"', "bad_request"), ("{}", "bad_request"), ('{"put":null}', "bad_request"),
        ('{"put":[]}', "bad_request"), ('{"put":"x"}', "bad_request"), ('{"put":{}}', "bad_request"),
        ('{"frobnicate":{}}', "bad_request"), ('{"put":{"text":"a"},"status":{}}', "bad_request"),
        ('{"put":{"text":"a"}} {}', "bad_request"), ('{"put":{"text":"a"}}x', "bad_request"),
        ('{"put":{"text":"a","base64":"YQ=="}}', "bad_request"), ('{"put":{"text":1}}', "bad_request"),
        ('{"put":{"text":null}}', "bad_request"), ('{"put":{"text":["a"]}}', "bad_request"),
        ('{"put":{"text":true}}', "bad_request"), ('{"put":{"base64":1}}', "bad_request"),
        ('{"put":{"base64":"***"}}', "bad_request"), ('{"put":{"base64":"YQ"}}', "bad_request"),
        ('{"put":{"base64":"YR=="}}', "bad_request"), ('{"put":{"base64":"YQ==\\n"}}', "bad_request"),
        ('{"put":{"base64":"_-8="}}', "bad_request"),
        ('{"put":{"text":"a","topic":1}}', "bad_request"), ('{"put":{"text":"a","lane":1}}', "bad_request"),
        ('{"put":{"text":"a","lane":"nowhere"}}', "unknown_lane"), ('{"put":{"text":"a","lane":""}}', "unknown_lane"),
        ('{"put":{"text":"a","at":-1}}', "bad_request"), ('{"put":{"text":"a","at":1.5}}', "bad_request"),
        ('{"put":{"text":"a","at":"1"}}', "bad_request"), ('{"put":{"text":"a","at":9007199254740992}}', "bad_request"),
        ('{"put":{"text":"a","at":1e400}}', "bad_request"), ('{"put":{"text":"a","at":true}}', "bad_request"),
        ('{"put":{"text":"a","at":184467440737095516160}}', "bad_request"),
        ('{"put":{"text":"a","ttl_s":-1}}', "bad_request"), ('{"put":{"text":"a","ttl_s":"1"}}', "bad_request"),
        ('{"put":{"text":"a","ttl_s":99999999999999999999}}', "bad_request"),
        ('{"put":{"text":"a","key":1}}', "bad_request"), ('{"put":{"text":"a","wait":"forever"}}', "bad_request"),
        ('{"put":{"text":"a","wait":1}}', "bad_request"), ('{"put":{"text":"a","colour":"red"}}', "bad_request"),
        ('{"put":{"text":"a","text":"b"}}', "bad_request"), ('{"put":{"text":"\\ud800"}}', "bad_request"),
        ('{"put":{"text":"a\tb"}}', "bad_request"), ('{"status":[]}', "bad_request"),
        ('{"status":{"x":1}}', "bad_request"),
        ('{"put":["telemetry","t","x",null,null,null,null,null,null]}', "bad_request"), (b"\xff\xfe\n", "bad_request"), (b"\0\n", "bad_request"),
        (b'{"put":{"text":"a\0b"}}\n', "bad_request"), (b'{"put":{"text":"\xff"}}\n', "bad_request"),
        ("[" * 10_000, "bad_request"), ('{"put":' * 5000, "bad_request"),
        ('{"put":{"text":"%s"}}' % ("x" * 16_385), "too_large"),
        ('{"put":{"topic":"%s","text":"%s"}}' % ("t" * 8193, "x" * 8192), "too_large"),
    ]
    for line, code in cases:
        try:
            is_error(local.ask(line), code)
        except Exception as error:
            raise type(error)(f"{line[:70]!r}: {error}") from None
    # With an id it comes back, wherever it can be read.
    is_error(local.ask('{"put":{"text":1,"id":9}}'), "bad_request", 9)
    is_error(local.ask('{"put":{"lane":"nowhere","text":"a","id":"n"}}'), "unknown_lane", "n")
    is_error(local.ask('{"frobnicate":{"id":5}}'), "bad_request", 5)
    is_error(local.ask('{"put":{"text":"%s","id":6}}' % ("x" * 16_385)), "too_large", 6)
    is_error(local.ask('{"put":{"text":"a","id":{}}}'), "bad_request")
    is_error(local.ask('{"put":{"text":"a","id":1.5}}'), "bad_request")
    is_word(local.ask('{"put":{"text":"%s"}}' % ("x" * 16_384)), "committed", 1)
    is_word(local.ask(b'{"put":{"text":"' + b"\\u0001" * 16_384 + b'"}}\n'), "committed", 2)


@check
def a_line_beyond_the_limit_gets_one_error_and_ends_it(room):
    agent = agent_alone(room)
    other = Local(agent.socket)
    for payload in (b"x" * (1 << 20), b'{"put":{"text":"' + b"x" * (1 << 20) + b'"}}\n{"put":{"text":"y"}}\n'):
        local = Local(agent.socket)
        try:
            local.send(payload)
        except OSError:
            pass  # it need not read to the end
        is_error(local.answer(), "too_large")
        expect(local.line() is None, "the connection lives on")
    is_word(other.ask('{"put":{"text":"x"}}'), "committed", 1)


@check
def pipelined_requests_are_answered_in_order_and_half_a_line_is_none(room):
    agent = agent_alone(room)
    local = Local(agent.socket)
    requests = []
    for number in range(300):
        requests.append(('{"put":{"text":"x","id":%d}}', '{"status":{"id":%d}}', '{"put":{"id":%d}}',
                         '{"put":{"text":"x","lane":"no","id":%d}}', '{"nonsense":{"id":%d}}')[number % 5] % number)
    whole = "\n".join(requests) + '\n{"put":{"te'
    local.send(whole)
    for number in range(300):
        (word, fields), = local.answer().items()
        expect(fields["id"] == number, number, "is answered by", fields)
        expect(word == ("committed", "status", "error", "error", "error")[number % 5], word, number)
    local.send('xt":"tail"}}\n')
    is_word(local.answer(), "committed", 61)
    # Byte by byte.
    for octet in b'{"put":{"text":"slow"}}\n':
        local.send(bytes([octet]))
    is_word(local.answer(), "committed", 62)
    # A client that leaves amid a line has said nothing of it; what it had finished counts.
    local.send('{"put":{"text":"whole"}}\n{"put":{"text":"half"}}')
    local.sock.close()
    eventually("63 is taken", lambda: agent.lane()["committed"] >= 63)
    is_word(Local(agent.socket).ask('{"put":{"text":"next"}}'), "committed", 64)


@check
def a_shut_down_writing_side_still_gets_its_answers(room):
    agent = agent_alone(room)
    local = Local(agent.socket)
    local.send('{"put":{"text":"x"}}\n{"put":{"text":"y"}}\n')
    local.sock.shutdown(1)
    is_word(local.answer(), "committed", 1)
    is_word(local.answer(), "committed", 2)
    expect(local.line() is None, "not closed")


@check
def an_empty_line_is_no_harm(room):
    local = Local(agent_alone(room).socket)
    local.send("\n\n{\"put\":{\"text\":\"x\"}}\n")
    answers = [local.answer()]
    while "error" in answers[-1]:
        is_error(answers[-1], "bad_request")
        answers.append(local.answer())
    is_word(answers[-1], "committed", 1)


@check
def watch_tells_the_link_now(room):
    local = Local(agent_alone(room).socket)
    answer = local.ask('{"watch":{}}')
    expect(list(answer) == ["link"] and type(answer["link"]["state"]) is str, answer)


NUMBER = "number"
PERCENTILES = {"p50": (NUMBER, None), "p99": (NUMBER, None)}
WAY = {"sent": int, "received": int}
FLASH = dict.fromkeys(("records", "acks", "reserve", "segments", "other"), int)
STATUS = {
    "agent": {"version": str, "pid": int, "uptime_s": NUMBER, "device": str, "boot": str, "config": str,
              "loss_s_ago": (NUMBER, None)},
    "link": {"state": str, "since_s": NUMBER, "endpoint": (str, None), "session": (str, None), "sessions": int,
             "attempts": int, "failures": dict, "success_ratio": (NUMBER, None), "last_failure": (dict, None),
             "next_attempt_ms": (int, None), "next_attempt_why": (str, None), "path": (dict, None),
             "backoff_ms": (int, None), "rtt_ms": (NUMBER, None), "suspect": bool,
             "quality": {"rtt_ms": (NUMBER, None), "rttvar_ms": (NUMBER, None), "ping_loss": (NUMBER, None), "bytes_per_s": (int, None)},
             "clock": str, "certificate": (dict, None), "endpoints": list},
    "lanes": list,
    "flash": {"bytes_written": int, "bytes_payload": int, "syncs": int, "sync_ms_p50": (NUMBER, None),
              "sync_ms_max": (NUMBER, None), "state": str, "lifetime": (dict, None),
              "by_purpose": FLASH, "syncs_by_purpose": FLASH, "budget": (dict, None)},
    "wire": {"bytes_sent": int, "bytes_received": int, "day_bytes": int, "capped": bool,
             "by_purpose": {"records": WAY, "acks": WAY, "commands": WAY, "heartbeat": WAY, "handshake": WAY}},
    "delay": {"put_to_committed_ms": PERCENTILES, "put_to_delivered_ms": PERCENTILES},
    "commands": {"received": int, "delivered": int, "done": int, "waiting": int, "unclaimed": int, "timed_out": int},
    "memory": {"rss_bytes": int, "rss_bytes_max": int, "queues_bytes": int, "queues_bytes_max": int},
    "histograms": dict.fromkeys(("sync", "rtt", "put_to_delivered"), {"counts": list, "sum_s": NUMBER}),
}
LANE = {"name": str, "epoch": int, "depth": int, "bytes": int, "bytes_max": int, "oldest_s": (NUMBER, None),
        **dict.fromkeys(("first", "next", "committed", "acked", "sent", "resent", "overflowed", "expired", "corrupt",
                         "rejected", "torn", "put_total", "acked_total"), int),
        **dict.fromkeys(("put_per_s", "acked_per_s"), NUMBER)}


def is_like(value, shape, where):
    if isinstance(shape, dict):
        expect(type(value) is dict and value.keys() == shape.keys(), where, "has not the keys", sorted(shape),
               "but", sorted(value) if type(value) is dict else value)
        for key in shape:
            is_like(value[key], shape[key], f"{where}.{key}")
    elif isinstance(shape, tuple):
        if value is not None:
            is_like(value, shape[0], where)
    elif shape is NUMBER:
        expect(type(value) in (int, float) and value >= 0, where, "is no number:", value)
    else:
        expect(type(value) is shape and (shape is not int or value >= 0), where, "is no", shape.__name__, ":", value)


def is_status(status):
    is_like(status, STATUS, "status")
    for lane in status["lanes"]:
        is_like(lane, LANE, "lane")
        expect(lane["epoch"] == 0 or lane["next"] >= lane["first"] >= 1, lane)
    expect(status["link"]["state"], status["link"])
    for name, count in status["link"]["failures"].items():
        expect(type(count) is int and count > 0, name, count)
    if status["link"]["last_failure"] is not None:
        is_like(status["link"]["last_failure"], {"class": str, "why": str, "detail": str, "s_ago": NUMBER},
                "last_failure")
    expect(status["link"]["clock"] in ("set", "unset"), status["link"])
    expect(status["flash"]["state"] in ("ok", "degraded"), status["flash"])
    expect(status["agent"]["config"] in ("current", "fallback"), status["agent"])


@check
def the_status_has_every_key_with_its_type_always(room):
    agent = agent_alone(room, lanes=LANES, start=False).start(until_open=False)
    local = Local(agent.socket)
    early = local.ask('{"status":{}}')
    expect(list(early) == ["status"], early)
    is_status(early["status"])
    expect([lane["name"] for lane in early["status"]["lanes"]] == ["telemetry", "grouped"], early["status"]["lanes"])
    agent.put("x" * 100, count=10)
    agent.put("x", lane="grouped")
    eventually("a failure", lambda: agent.status()["link"]["last_failure"])
    status = agent.status()
    is_status(status)
    lanes = {lane["name"]: lane for lane in status["lanes"]}
    expect(list(lanes) == ["telemetry", "grouped"], "lanes", list(lanes))
    telemetry = lanes["telemetry"]
    expect((telemetry["depth"], telemetry["committed"], telemetry["next"], telemetry["first"], telemetry["acked"])
           == (10, 10, 11, 1, 0), telemetry)
    expect(lanes["grouped"]["depth"] == 1, lanes["grouped"])
    expect(status["agent"]["pid"] == agent.process.pid and status["agent"]["device"] == "peer", status["agent"])
    expect(status["flash"]["bytes_payload"] >= 1000, status["flash"])
    expect(status["memory"]["queues_bytes"] <= status["memory"]["queues_bytes_max"], status["memory"])
    code, out, _ = room.run("status", "--json", "--config", agent.config)
    expect(code == 0, code)
    is_status(json.loads(out))
    expect(json.loads(out)["agent"]["pid"] == agent.process.pid, out)


@check
def the_socket_has_its_mode_and_a_stale_one_is_replaced(room):
    agent = agent_alone(room)
    expect(stat.S_IMODE(os.stat(agent.socket).st_mode) == 0o660, oct(os.stat(agent.socket).st_mode))
    agent.kill()
    expect(os.path.exists(agent.socket), "nothing stale to replace")
    agent.start()
    is_word(Local(agent.socket).ask('{"put":{"text":"x"}}'), "committed", 1)
    # A second agent takes neither the socket nor the outbox from the first.
    code, _, words = room.run("run", "--config", agent.config)
    expect(code not in (0, 101) and words.count("\n") <= 6, code, words)
    is_word(Local(agent.socket).ask('{"put":{"text":"x"}}'), "committed", 2)


@check
def a_full_lane_that_rejects_says_so(room):
    agent = agent_alone(room, segment_bytes=16_384, record_bytes_max=4096,
                        lanes='[[lane]]\nname = "telemetry"\nbytes_max = 32768\noverflow = "reject"\n')
    local = Local(agent.socket)
    taken, answer = 0, {}
    while "error" not in answer:
        answer = local.ask('{"put":{"text":"%s"}}' % ("x" * 1000))
        taken += 1
        expect(taken < 100, "never full")
    is_error(answer, "full")
    lane = agent.lane()
    expect(lane["committed"] == taken - 1 == lane["depth"] and lane["bytes"] <= lane["bytes_max"], lane)


@check
def more_clients_than_clients_max_are_told(room):
    agent = agent_alone(room)
    # An answer on the first says that the agent is done with whoever asked whether it was up.
    clients = [Local(agent.socket)]
    expect("committed" in clients[0].ask('{"put":{"text":"x"}}'), "the first client")
    for _ in range(39):
        clients.append(Local(agent.socket))
    refused = 0
    for client in clients:
        try:
            answer = client.ask('{"put":{"text":"x"}}')
        except OSError:
            answer = client.answer()
        if "error" in answer:
            is_error(answer, "busy")
            refused += 1
    expect(refused == 40 - 32, refused, "refused of 40 with clients_max 32")


if __name__ == "__main__":
    main(["AGENT"])
