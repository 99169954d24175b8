"""What the peers share: processes under test in a folder of their own, and a runner that names each check."""

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

from wire import DEADLINE_S, Upgrade, expect

# Timings of milliseconds, so that a check sees many lives of the link in a second.
BASE = """
[device]
id = "peer"
[upstream]
encodings = {encodings}
handshake_timeout_ms = {handshake_timeout_ms}
ack_timeout_ms = {ack_timeout_ms}
window_records = {window_records}
server_wait_ms_max = {server_wait_ms_max}
{endpoints}
[upstream.reconnect]
start_delay_ms_max = 0
spread_ms = 0
backoff_ms_min = 20
backoff_ms_max = 50
slow_ms_min = {slow_ms_min}
slow_ms_max = {slow_ms_max}
stable_after_ms = 500
[upstream.heartbeat]
interval_ms = {heartbeat_ms}
timeout_ms = {heartbeat_ms}
misses_max = 2
[outbox]
dir = "{dir}/outbox"
segment_bytes = {segment_bytes}
headroom_bytes_min = 0
{lanes}
[local]
socket = "{dir}/agent.sock"
record_bytes_max = {record_bytes_max}
[log]
level = "debug"
"""
DEFAULTS = {
    "encodings": '["json"]', "handshake_timeout_ms": 10_000, "ack_timeout_ms": 10_000, "window_records": 4096,
    "server_wait_ms_max": 60_000, "slow_ms_min": 20, "slow_ms_max": 50, "heartbeat_ms": 10_000,
    "segment_bytes": 65_536, "record_bytes_max": 16_384,
    "lanes": '[[lane]]\nname = "telemetry"\nbytes_max = 4194304\n',
}

CHECKS = []


def check(function):
    """Registers a check; its name is the sentence that is printed."""
    if function.__module__ == "__main__":  # not those of a peer that is only imported
        CHECKS.append(function)
    return function


def eventually(what, look):
    """Looks again and again until `look` returns something true."""
    until = time.monotonic() + DEADLINE_S
    while True:
        found = look()
        if found:
            return found
        expect(time.monotonic() < until, what, "not within", DEADLINE_S, "s")
        time.sleep(0.01)


def main(programs):
    """Runs the checks named on the command line, else all; `programs` are its first arguments."""
    arguments = sys.argv[1:]
    if len(arguments) < len(programs):
        sys.exit(f"usage: {sys.argv[0]} {' '.join(programs)} [CHECK...]")
    paths = [os.path.abspath(path) for path in arguments[:len(programs)]]
    wanted = arguments[len(programs):]
    failed = []
    for function in CHECKS:
        if wanted and function.__name__ not in wanted:
            continue
        begun = time.monotonic()
        room = Room(*paths)
        try:
            function(room)
            print(f"ok      {function.__name__} ({time.monotonic() - begun:.1f} s)", flush=True)
        except Exception:
            failed.append(function.__name__)
            print(f"FAILED  {function.__name__}\n{traceback.format_exc()}{room.last_words()}", flush=True)
        finally:
            room.clear()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; again: {sys.argv[0]} {' '.join(paths)} {' '.join(failed)}")


class Room:
    """One check's folder and processes; all gone at the end, however it comes."""

    def __init__(self, *programs):
        self.programs = programs
        self.dir = tempfile.mkdtemp(prefix="backhaul-peer-")
        self.processes = []
        self.log = os.path.join(self.dir, "log")
        atexit.register(self.clear)

    def path(self, name):
        return os.path.join(self.dir, name)

    def write(self, name, text, mode=0o600):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def spawn(self, *arguments):
        process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=open(self.log, "a"),
                                   stderr=subprocess.STDOUT)
        self.processes.append(process)
        return process

    def run(self, *arguments, stdin=None, **more):
        """A command to its end: (exit code, stdout, stderr)."""
        done = subprocess.run([self.programs[0], *arguments], input=stdin, capture_output=True, timeout=DEADLINE_S,
                              **more)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def words(self):
        with open(self.log, errors="replace") as file:
            return file.read()

    def last_words(self):
        if not os.path.exists(self.log):
            return ""
        return "".join(f"    | {line}\n" for line in self.words().splitlines()[-25:])

    def clear(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []
        shutil.rmtree(self.dir, ignore_errors=True)


class Agent:
    """`backhaul run` with timings of milliseconds."""

    def __init__(self, room, *servers, tail="", endpoint="", start=True, **settings):
        self.room, self.process = room, None
        self.socket = room.path("agent.sock")
        endpoints = "".join(f'[[upstream.endpoint]]\nurl = "{server.url}"\n{endpoint}\n' for server in servers)
        text = BASE.format(**{**DEFAULTS, **settings, "dir": room.dir, "endpoints": endpoints})
        self.config = room.write("backhaul.toml", text + tail)
        if start:
            self.start()

    def start(self, until_open=True):
        """Starts it and waits for its socket, and until the outbox behind it is open: until then epochs are 0."""
        self.process = self.room.spawn(self.room.programs[0], "run", "--config", self.config)
        eventually("the local socket answers", self.listens)
        if until_open:
            eventually("the outbox is open", lambda: all(lane["epoch"] for lane in self.status()["lanes"]))
        return self

    def listens(self):
        expect(self.process.poll() is None, "the agent has left with", self.process.returncode)
        try:
            Local(self.socket).sock.close()
            return True
        except OSError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def term(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def put(self, text="x", count=1, **fields):
        """Puts `count` records, pipelined; their seqs."""
        local = Local(self.socket)
        fields = {"topic": "t", **({} if "base64" in fields else {"text": text}), **fields}
        local.send("".join(json.dumps({"put": fields}) + "\n" for _ in range(count)))
        answers = [local.answer() for _ in range(count)]
        local.sock.close()
        for answer in answers:
            expect("committed" in answer or "accepted" in answer, "not committed:", answer)
        return [next(iter(answer.values()))["seq"] for answer in answers]

    def status(self):
        local = Local(self.socket)
        local.send('{"status":{}}\n')
        status = local.answer()["status"]
        local.sock.close()
        return status

    def lane(self, name="telemetry"):
        return next(lane for lane in self.status()["lanes"] if lane["name"] == name)


class Local:
    """One connection to the local socket, by raw lines."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(path)
        self.rest = b""

    def send(self, text):
        self.sock.sendall(text if isinstance(text, bytes) else text.encode())

    def line(self):
        """The next line; None at the end of the stream."""
        while b"\n" not in self.rest:
            try:
                more = self.sock.recv(65536)
            except ConnectionError:
                more = b""
            if not more:
                expect(not self.rest, "half a line:", self.rest)
                return None
            self.rest += more
        line, self.rest = self.rest.split(b"\n", 1)
        return line

    def answer(self):
        line = self.line()
        expect(line is not None, "the connection has ended without an answer")
        return json.loads(line)

    def ask(self, text):
        self.send(text if isinstance(text, bytes) else text + "\n")
        return self.answer()


class Server:
    """A listening port on loopback that keeps its number."""

    def __init__(self):
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.listen(16)
        self.port = self.sock.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/v1"

    def upgrade(self, within=DEADLINE_S):
        """The next upgrade request."""
        self.sock.settimeout(within)
        return Upgrade(self.sock.accept()[0])
