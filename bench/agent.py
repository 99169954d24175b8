"""The whole agent at rest and under load: producer, local socket, flash, loopback WebSocket, receiver, durable ack.

    python3 bench/agent.py AGENT RECEIVER [RECORDS [DIR]]

What it says of memory and CPU is the agent's own, by /proc. The records per second are those of the whole chain, the
producer (this script) and the receiver (SQLite, synced) included, who share the cores with the agent.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

IDLE_S = 30
CONFIG = """
[device]
id = "bench"
[[upstream.endpoint]]
url = "ws://127.0.0.1:{port}/v1"
[upstream.reconnect]
start_delay_ms_max = 0
[outbox]
dir = "{dir}/outbox"
[[lane]]
name = "telemetry"
bytes_max = 1073741824
commit = "{commit}"
[local]
socket = "{dir}/agent.sock"
record_bytes_max = 65536
"""
# 100 bytes in postcard, as in the outbox's own benchmark: 14 of times, 12 of topic, 4 of lengths and kinds.
TOPIC = "boiler/temp"
BODY = '{{"unit":"C","value":{value:>9.3f},"n":{n:>21},"ok":true}}'


def ask(path, request):
    with socket.socket(socket.AF_UNIX) as local:
        local.settimeout(10)
        local.connect(path)
        local.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(local.makefile().readline())


class Agent:
    def __init__(self, program, folder, port, commit):
        config = os.path.join(folder, "backhaul.toml")
        self.socket = os.path.join(folder, "agent.sock")
        with open(config, "w") as file:
            file.write(CONFIG.format(dir=folder, port=port, commit=commit))
        log = open(os.path.join(folder, "agent.log"), "w")
        self.process = subprocess.Popen([program, "run", "--config", config], stdin=subprocess.DEVNULL,
                                        stdout=log, stderr=log)

    def status(self):
        return ask(self.socket, {"status": {}})["status"]

    def wait(self, wanted, seconds=120):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                status = self.status()
                if wanted(status):
                    return status
            except OSError:
                pass
            time.sleep(0.05)
        sys.exit("the agent does not get there")

    def kib(self, *names):
        """Of /proc/PID/status."""
        text = open(f"/proc/{self.process.pid}/status").read()
        return [int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1]) for name in names]

    def cpu_s(self):
        """User, system."""
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return [int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:13]]

    def wakeups(self):
        """Times that any thread went to sleep by itself."""
        tasks = f"/proc/{self.process.pid}/task"
        texts = (open(f"{tasks}/{task}/status").read() for task in os.listdir(tasks))
        return sum(int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.M)[1]) for text in texts)


def load(agent, records):
    """Puts so many and reads every answer; how long until all are acked."""
    lines = []
    for n in range(records):
        put = {"topic": TOPIC, "text": BODY.format(value=n / 7 % 1e5, n=n)}
        lines.append(json.dumps({"put": put}, separators=(",", ":")))
    lines = ("\n".join(lines) + "\n").encode()
    local = socket.socket(socket.AF_UNIX)
    local.connect(agent.socket)
    words = []

    def read():
        heard = 0
        while heard < records:
            chunk = local.recv(1 << 20)
            heard += chunk.count(b"\n")
            if not chunk or b'"error"' in chunk:
                sys.stderr.write(f"{chunk[:200]}\n")
                os._exit(1)
        words.append(time.monotonic())

    reader = threading.Thread(target=read)
    before, begun = agent.cpu_s(), time.monotonic()
    reader.start()
    local.sendall(lines)
    reader.join()
    status = agent.wait(lambda status: status["lanes"][0]["depth"] == 0)
    took = time.monotonic() - begun
    cpu = [(after - before) * 1e6 / records for after, before in zip(agent.cpu_s(), before)]
    print(f"  {records} records: {records / took:,.0f}/s until acked, {records / (words[0] - begun):,.0f}/s until answered")
    print(f"  CPU of the agent per record: {sum(cpu):.2f} us, {cpu[0]:.2f} of it user")
    flash = status["flash"]
    print(f"  flash: {flash['by_purpose']['records'] / records:.1f} bytes of batches and {flash['syncs']} syncs in all"
          f" ({records / flash['syncs']:.0f} records a sync)")
    print("  peak resident: {:.1f} MiB".format(agent.kib("VmHWM")[0] / 1024))


def main(agent_program, receiver_program, records=500_000, folder=None):
    folder = os.path.realpath(tempfile.mkdtemp(prefix="backhaul-bench-", dir=folder))
    processes = []
    try:
        receiver = subprocess.Popen(
            [receiver_program, "--listen", "127.0.0.1:0", "--store", os.path.join(folder, "store.db")],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        processes.append(receiver)
        port = int(receiver.stdout.readline().decode().rsplit(":", 1)[1])
        for commit in ("sync", "group"):
            home = os.path.join(folder, commit)
            os.mkdir(home)
            begun = time.monotonic()
            agent = Agent(agent_program, home, port, commit)
            processes.append(agent.process)
            agent.wait(lambda status: status["link"]["state"] == "up")
            up_ms = (time.monotonic() - begun) * 1000
            print(f'commit = "{commit}", load average {os.getloadavg()[0]:.1f}')
            if commit == "sync":
                time.sleep(2)
                before = agent.wakeups()
                time.sleep(IDLE_S)
                wakes = (agent.wakeups() - before) / IDLE_S
                print("  idle, session up, plain: {:.1f} MiB resident, {:.1f} of it anonymous; {:.2f} wake-ups a second"
                      .format(*(kib / 1024 for kib in agent.kib("VmRSS", "RssAnon")), wakes))
                print(f"  session up within {up_ms:.0f} ms of the start (asked every 50 ms)")
            load(agent, int(records))
            agent.process.send_signal(signal.SIGTERM)
            agent.process.wait(30)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(folder)


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
