"""A person who has only read "Command line" and "Configuration" in the documentation, at the command.

    python3 tests/peers/cli.py target/debug/backhaul [CHECK...]
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

from rig import BASE, DEFAULTS, Agent, Local, Server, check, eventually, main
from server import Session, acked
from wire import DEADLINE_S, expect

USAGE, DATA, NO_INPUT, UNAVAILABLE, INPUT_OUTPUT, TRY_AGAIN, NO_PERMISSION, CONFIGURATION = 64, 65, 66, 69, 74, 75, 77, 78


def says(room, code, *arguments, within=None, **more):
    """Runs a command and checks its exit code, that it panics not, and that what it says is short; all it said."""
    got, out, words = room.run(*arguments, **more)
    where = " ".join(arguments)
    expect(got == code, where, "exits with", got, "not", code, "\n", words or out)
    expect("panicked" not in words, words)
    if code and "--check" not in arguments:  # which is an exit code and no more
        expect(words.strip(), where, "fails without a word")
        expect(len(words.strip().splitlines()) <= 3, where, "is long-winded:", words)
    if within:
        expect(re.search(within, out + words), where, "does not say", within, ":", out + words)
    return out, words


def settings(room, **more):
    return BASE.format(**{**DEFAULTS, "dir": room.dir,
                          "endpoints": '[[upstream.endpoint]]\nurl = "ws://127.0.0.1:9/"\n', **more})


@check
def help_of_each_fits_a_screen_and_usage_errors_are_64(room):
    for command in ((), ("run",), ("check",), ("send",), ("status",)):
        for flag in ("--help", "-h"):
            out, words = says(room, 0, *command, flag)
            expect(len(out.splitlines()) <= 24 and max(map(len, out.splitlines())) <= 80 and not words, out)
    out, _ = says(room, 0, "--version")
    expect(re.fullmatch(r"backhaul \d+\.\d+\.\d+\n", out), out)
    for wrong in ((), ("nonsense",), ("--nonsense",), ("run", "--nonsense"), ("run", "extra"), ("run", "--config"),
                  ("check", "extra"), ("send", "a", "b"), ("send", "--wait", "soon"), ("send", "--timeout", "soon"),
                  ("send", "--timeout", "-1"), ("send", "--lane"), ("status", "extra"), ("status", "--watchh"),
                  ("status", "--config", "a", "--socket", "b")):
        says(room, USAGE, *wrong)


@check
def check_prints_what_is_effective_and_bounds_memory_and_flash(room):
    config = room.write("backhaul.toml", settings(room))
    room.write("conf.d/50-site.toml", '[device]\nid = "site-9"\n[upstream.heartbeat]\ninterval_ms = 1234\n')
    room.write("conf.d/60-late.toml", '[upstream.heartbeat]\ninterval_ms = 4321\n')
    room.write("conf.d/70-not-toml.txt", "garbage")
    out, _ = says(room, 0, "check", "--config", config)
    for line in (r'site-9', r'interval_ms = 4321', r'misses_max = 2', r'(?i)memory', r'(?i)flash'):
        expect(re.search(line, out), "check does not say", line, ":", out)
    expect("interval_ms = 1234" not in out, out)
    # What it prints is itself a configuration.
    again = room.write("again.toml", out)
    shutil.rmtree(room.path("conf.d"))
    second, _ = says(room, 0, "check", "--config", again)
    expect(second.split("\n\n", 1)[1] == out.split("\n\n", 1)[1], "not the same again:", second)


@check
def every_bad_configuration_is_one_clear_message_and_78(room):
    good = settings(room)
    wrong = {
        "not TOML": (good + "[[[", r":\d+"),
        "an unknown key": (good.replace("[device]", "[device]\nname = 1"), r":3\b.*name"),
        "an unknown table": (good + "[nonsense]\n", r":\d+.*nonsense"),
        "a misspelt key": (good.replace("misses_max", "mises_max"), r":\d+.*mises_max.*misses_max"),
        "a string for a number": (good.replace("misses_max = 2", 'misses_max = "2"'), r":\d+.*misses_max"),
        "a negative number": (good.replace("misses_max = 2", "misses_max = -2"), r":\d+"),
        "a fraction": (good.replace("misses_max = 2", "misses_max = 2.5"), r":\d+"),
        "a huge number": (good.replace("misses_max = 2", "misses_max = 99999999999999999999"), r":\d+"),
        "an interval of 9 ms": (good.replace("stable_after_ms = 500", "stable_after_ms = 9"), r":\d+.*stable_after_ms"),
        "backoff upside down": (good.replace("backoff_ms_min = 20", "backoff_ms_min = 100"), r"backoff_ms"),
        "no endpoint": (good.replace('[[upstream.endpoint]]\nurl = "ws://127.0.0.1:9/"', ""), r"endpoint"),
        "ws to elsewhere": (good.replace("ws://127.0.0.1:9/", "ws://example.com/"), r":\d+.*(insecure|wss)"),
        "http": (good.replace("ws://", "http://"), r":\d+.*url"),
        "an empty url": (good.replace("ws://127.0.0.1:9/", ""), r":\d+.*url"),
        "a lane twice": (good.replace(DEFAULTS["lanes"], DEFAULTS["lanes"] * 2), r"telemetry"),
        "a bad lane name": (good.replace('"telemetry"', '"Tele metry"'), r":\d+"),
        "two default lanes": (good.replace(DEFAULTS["lanes"], '[[lane]]\nname = "a"\ndefault = true\n'
                                           '[[lane]]\nname = "b"\ndefault = true\n'), r"default"),
        "small segments": (good.replace("segment_bytes = 65536", "segment_bytes = 8192"), r":\d+.*segment_bytes"),
        "crooked segments": (good.replace("segment_bytes = 65536", "segment_bytes = 65537"), r":\d+.*segment_bytes"),
        "a record above the segment": (good.replace("record_bytes_max = 16384", "record_bytes_max = 65536"),
                                       r"record_bytes_max"),
        "a lane of one segment": (good.replace("bytes_max = 4194304", "bytes_max = 65536"), r":\d+.*bytes_max"),
        "an unknown policy": (good.replace('name = "telemetry"', 'name = "telemetry"\noverflow = "panic"'),
                              r":\d+.*(drop_oldest|reject)"),
        "an unknown commit": (good.replace('name = "telemetry"', 'name = "telemetry"\ncommit = "never"'), r":\d+"),
        "an unknown encoding": (good.replace('["json"]', '["xml"]'), r":\d+"),
        "no encoding": (good.replace('["json"]', "[]"), r"encodings"),
        "an unknown level": (good.replace('"debug"', '"loud"'), r":\d+"),
        "a bad mode": (good.replace("[log]", 'mode = "abc"\n[log]'), r":\d+.*mode"),
        "an empty device": (good.replace('"peer"', '""'), r":\d+.*id"),
        "a device with a space": (good.replace('"peer"', '"a b"'), r":\d+.*id"),
        "a device in no file": (good.replace('"peer"', '"file:/nonexistent"'), r"/nonexistent"),
        "a device of no interface": (good.replace('"peer"', '"mac:nope0"'), r"nope0"),
        "a CA that is not there": (good.replace("9/\"", '9/"\nca_file = "/nonexistent"'), r"/nonexistent"),
        "a token that is not there": (good.replace("9/\"", '9/"\ntoken_file = "/nonexistent"'), r"/nonexistent"),
        "a long socket": (good.replace("/agent.sock", "/" + "s" * 120), r":\d+.*socket"),
    }
    for what, (text, expected) in wrong.items():
        expect(text != good, what, "is the good one")
        config = room.write("bad.toml", text)
        for command in (("check",), ("run", "--strict")):
            try:
                says(room, CONFIGURATION, *command, "--config", config, within=expected)
            except Exception as error:
                raise type(error)(f"{what}: {error}") from None
    config = room.write("good.toml", good)
    room.write("conf.d/bad.toml", "[device]\nid = 7\n")
    says(room, CONFIGURATION, "check", "--config", config, within=r"bad\.toml:2\b")
    os.remove(room.path("conf.d/bad.toml"))
    says(room, CONFIGURATION, "check", "--config", room.path("none.toml"), within="none.toml")
    open(room.path("binary.toml"), "wb").write(b"\xff\xfe\0")
    says(room, CONFIGURATION, "check", "--config", room.path("binary.toml"))
    says(room, CONFIGURATION, "check", "--config", room.dir)
    token = room.write("token", "x\n", 0o644)
    config = room.write("loose.toml", good.replace("9/\"", f'9/"\ntoken_file = "{token}"'))
    says(room, CONFIGURATION, "check", "--config", config, within=r"(others|mode|chmod)")


@check
def a_group_that_does_not_exist_is_a_warning(room):
    config = room.write("backhaul.toml", settings(room).replace("[log]", 'group = "no-such-group"\n[log]'))
    out, words = says(room, 0, "check", "--config", config)
    expect("no-such-group" in out + words, "not a word of the group")


def agent_at(room, **more):
    server = Server()
    return server, Agent(room, server, **more)


@check
def send_takes_a_line_a_record_from_a_pipe_a_file_or_whole(room):
    server, agent = agent_at(room)
    at = ("--config", agent.config)
    says(room, 0, "send", *at, "-t", "temp", stdin=b"21.5\n")
    says(room, 0, "send", "--socket", agent.socket, "--topic", "temp", stdin=b"one\ntwo\r\n\nlast without an end")
    file = room.write("lines", "a\nb\n")
    says(room, 0, "send", *at, "--lane", "telemetry", file)
    says(room, 0, "send", *at, "-l", "telemetry", "-", stdin=b"dash\n")
    says(room, 0, "send", *at, "--whole", stdin=b"\x00\xff\nbinary\n")
    says(room, 0, "send", *at, "--whole", file)
    says(room, 0, "send", *at, "--wait", "accepted", stdin=b"fast\n")
    says(room, 0, "send", *at, "--wait", "committed", stdin=b"sure\n")
    says(room, 0, "send", *at, stdin=b"")
    session = Session(server).until(agent.lane()["committed"])
    bodies = [record["body"] for _, record in sorted(session.records.items())]
    topics = [record["topic"] for _, record in sorted(session.records.items())]
    lines = [body["text"] for body in bodies if "text" in body]
    expect(lines[:3] == ["21.5", "one", "two\r"] and topics[:3] == ["temp"] * 3, lines, topics)
    expect("last without an end" in lines and "a" in lines and "b" in lines and "dash" in lines, lines)
    expect({"base64": "AP8KYmluYXJ5Cg=="} in bodies and "a\nb\n" in lines, bodies)
    session.ack(session.next[session.pair()] - 1)
    acked(agent, session.next[session.pair()] - 1)
    waiting = subprocess.Popen([room.programs[0], "send", *at, "--wait", "delivered"], stdin=subprocess.PIPE)
    room.processes.append(waiting)
    waiting.stdin.write(b"d1\nd2\n")
    waiting.stdin.close()
    last = session.next[session.pair()] + 1
    session.until(last)
    expect(waiting.poll() is None, "has not waited for the delivery")
    session.ack(last)
    expect(waiting.wait(DEADLINE_S) == 0, "delivered exits with", waiting.returncode)


@check
def send_sends_an_endless_stream_as_it_comes(room):
    server, agent = agent_at(room)
    stream = subprocess.Popen([room.programs[0], "send", "--config", agent.config], stdin=subprocess.PIPE)
    room.processes.append(stream)
    for number in range(3):
        stream.stdin.write(b"tick %d\n" % number)
        stream.stdin.flush()
        eventually("a tick is committed", lambda: agent.lane()["depth"] == number + 1)
    # The agent goes and comes back meanwhile.
    agent.kill()
    stream.stdin.write(b"while it was away\n")
    stream.stdin.flush()
    agent.start()
    eventually("what came meanwhile is committed", lambda: agent.lane()["depth"] == 4)
    stream.stdin.close()
    expect(stream.wait(DEADLINE_S) == 0, "exits with", stream.returncode)
    many = b"".join(b"line %d\n" % number for number in range(20_000))
    says(room, 0, "send", "--config", agent.config, stdin=many)
    expect(agent.lane()["depth"] == 20_004, agent.lane())


@check
def send_says_why_it_cannot(room):
    config = room.write("backhaul.toml", settings(room))
    _, words = says(room, TRY_AGAIN, "send", "--config", config, "--timeout", "0.2", stdin=b"x\n")
    expect("0" in words, "not the count committed:", words)
    begun = time.monotonic()
    says(room, TRY_AGAIN, "send", "--config", config, "--timeout", "0", stdin=b"x\n")
    expect(time.monotonic() - begun < 5, "a timeout of 0 takes", time.monotonic() - begun)
    says(room, NO_INPUT, "send", "--config", config, room.path("nofile"), within="nofile")
    agent = Agent(room, type("Nowhere", (), {"url": "ws://127.0.0.1:9/"}), segment_bytes=16_384, record_bytes_max=4096,
                  lanes='[[lane]]\nname = "telemetry"\nbytes_max = 32768\noverflow = "reject"\n')
    at = ("--config", agent.config)
    _, words = says(room, DATA, "send", *at, stdin=b"good\n" + b"x" * 4097 + b"\ngood\n", within="4096|too_large|larger")
    _, words = says(room, USAGE, "send", *at, "-l", "nowhere", stdin=b"x\n", within="nowhere")
    says(room, DATA, "send", *at, "--whole", stdin=b"x" * 5000)
    _, words = says(room, TRY_AGAIN, "send", *at, "--timeout", "0.2", stdin=b"%s\n" % (b"x" * 1000) * 100,
                    within="full")
    count = int(re.search(r"(\d+) committed", words).group(1))
    expect(agent.lane()["committed"] == count + 1 or agent.lane()["committed"] == count + 2, words, agent.lane())


@check
def a_storage_that_takes_nothing_is_degraded_and_never_committed(room):
    room.write("file", "no folder")
    agent = Agent(room, type("Nowhere", (), {"url": "ws://127.0.0.1:9/"}), start=False)
    text = open(agent.config).read()
    room.write("backhaul.toml", text.replace(f'dir = "{room.dir}/outbox"', f'dir = "{room.dir}/file/outbox"'))
    agent.start()
    for wait in ((), ("--wait", "committed")):
        _, words = says(room, INPUT_OUTPUT, "send", "--config", agent.config, "--timeout", "0.2", *wait, stdin=b"x\n",
                        within="0 committed, 1 taken but not: degraded")
    _, words = says(room, TRY_AGAIN, "send", "--config", agent.config, "--wait", "delivered", "--timeout", "0.2",
                    stdin=b"x\n", within="0 delivered")
    expect(agent.status()["flash"]["state"] == "degraded", agent.status()["flash"])


@check
def status_is_for_people_for_programs_and_an_exit_code(room):
    config = room.write("backhaul.toml", settings(room))
    says(room, 3, "status", "--check", "--config", config)
    says(room, UNAVAILABLE, "status", "--config", config)
    server, agent = agent_at(room)
    at = ("--config", agent.config)
    says(room, 2, "status", "--check", *at)
    session = Session(server)
    eventually("up", lambda: agent.status()["link"]["state"] == "up")
    got, out, words = room.run("status", "--check", *at)
    expect(got == 0, "up and well exits with", got, out, words)
    agent.put()
    session.until(1).ack(1)
    acked(agent, 1)
    out, _ = says(room, 0, "status", *at)
    for word in ("up", "telemetry", server.url, "peer"):
        expect(word in out, "status does not say", word, ":", out)
    expect(max(map(len, out.splitlines())) <= 100 and len(out.splitlines()) <= 40, out)
    out, _ = says(room, 0, "status", "--json", "--socket", agent.socket)
    expect(json.loads(out)["link"]["state"] == "up", out)
    session.drop()
    server.sock.close()
    eventually("down", lambda: agent.status()["link"]["state"] != "up")
    says(room, 2, "status", "--check", *at)


@check
def loss_in_the_last_hour_is_degraded(room):
    server, agent = agent_at(room, segment_bytes=16_384, record_bytes_max=4096,
                             lanes='[[lane]]\nname = "telemetry"\nbytes_max = 32768\n')
    agent.put("x" * 1000, count=100)
    session = Session(server).until(100)
    session.ack(100)
    acked(agent, 100)
    got, out, words = room.run("status", "--check", "--config", agent.config)
    expect(got == 1, "loss exits with", got, out, words)


@check
def a_second_agent_on_the_same_outbox_is_told_and_harms_nobody(room):
    server, agent = agent_at(room)
    agent.put()
    other = room.write("other.toml", open(agent.config).read().replace("agent.sock", "other.sock"))
    got, _, words = room.run("run", "--config", other)
    expect(got in (UNAVAILABLE, TRY_AGAIN, CONFIGURATION) and len(words.splitlines()) <= 5, got, words)
    agent.put()
    Session(server).until(2)


@check
def sigterm_puts_what_was_accepted_on_flash_and_sighup_bears_a_bad_file(room):
    server, agent = agent_at(room, lanes='[[lane]]\nname = "telemetry"\ncommit = "group"\ncommit_ms = 60000\n')
    agent.put(count=10)
    good = open(agent.config).read()
    room.write("backhaul.toml", good + "[[[")
    agent.process.send_signal(signal.SIGHUP)
    eventually("a word on the bad file", lambda: re.search(r"(WARN|ERROR)[^\n]*backhaul\.toml", room.words()))
    expect(agent.process.poll() is None, "left")
    expect(agent.put() == [11], "no longer serves")
    room.write("backhaul.toml", good)
    begun = time.monotonic()
    expect(agent.term() == 0, "SIGTERM gives", agent.process.returncode)
    expect(time.monotonic() - begun < 10, "SIGTERM took", time.monotonic() - begun)
    agent.start()
    expect(agent.lane()["depth"] == 11, agent.lane())


@check
def ready_is_notified_when_the_socket_takes_connections(room):
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(room.path("notify"))
    notify.settimeout(DEADLINE_S)
    config = room.write("backhaul.toml", settings(room))
    environment = {**os.environ, "NOTIFY_SOCKET": room.path("notify"), "WATCHDOG_USEC": "200000"}
    process = subprocess.Popen([room.programs[0], "run", "--config", config], env=environment,
                               stderr=open(room.log, "a"))
    room.processes.append(process)
    words = notify.recv(4096).decode()
    while "READY=1" not in words:
        words += "\n" + notify.recv(4096).decode()
    Local(room.path("agent.sock")).sock.close()
    for _ in range(3):
        while "WATCHDOG=1" not in notify.recv(4096).decode():
            pass
    process.send_signal(signal.SIGTERM)
    while "STOPPING=1" not in notify.recv(4096).decode():
        pass
    expect(process.wait(DEADLINE_S) == 0, "exits with", process.returncode)


@check
def no_right_to_the_folders_is_77(room):
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if not setpriv:
            return
        os.chmod(room.dir, 0o755)
        config = room.write("backhaul.toml", settings(room), 0o644)
        program = room.path("backhaul")
        shutil.copy(room.programs[0], program)
        done = subprocess.run([setpriv, "--reuid", "65534", "--regid", "65534", "--clear-groups", program, "run",
                               "--config", config], capture_output=True, timeout=DEADLINE_S)
        words = done.stderr.decode()
        expect(done.returncode == NO_PERMISSION and room.dir in words, done.returncode, words)


if __name__ == "__main__":
    main(["AGENT"])
