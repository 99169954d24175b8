#!/usr/bin/env python3
"""Power cuts of whole ARM machines: what the agent in the guest told its producers is committed is at the receiver on
this host exactly once, and in order, however often the power went. `campaign.py CASE PACKAGE RECEIVER [CUTS] [SEED]`,
PACKAGE being a folder into which the agent's package was unpacked; the cases are below. What was said on the serial
consoles is in target/vm/CASE/console.log."""

import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import film
import image
from machine import Machine, disk

# Architecture and storage.
CASES = {"arm64-sd": ("arm64", "sd"), "arm64-cache": ("arm64", "virtio"),
         "armhf-nand": ("armhf", "nand"),
         "armhf-2038": ("armhf", "virtio")}
# Only a failure takes so long.
BOOT_S = 600
# The first second that C's time_t of 32 bits has no number for: 2038-01-19 03:14:08 UTC.
OVERFLOW_S = 1 << 31
DISK_MIB = 64
CONFIG = """
[device]
id = "board"
[upstream]
handshake_timeout_ms = 20000
[[upstream.endpoint]]
url = "{scheme}://10.0.2.2:{port}/v1"
insecure = true
{trust}
[upstream.reconnect]
start_delay_ms_max = 0
spread_ms = 100
backoff_ms_min = 100
backoff_ms_max = 500
[local]
record_bytes_max = 8192
[outbox]
headroom_bytes_min = 1048576
segment_bytes = 65536
[[lane]]
name = "telemetry"
default = true
bytes_max = 8388608
overflow = "reject"
"""


def certificate(folder):
    """One that this host's address in the guest's network is trusted by, valid for thirty years."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "10950", "-subj", "/CN=host", "-addext", "subjectAltName=IP:10.0.2.2"]
    subprocess.run([*command, "-out", str(cert), "-keyout", str(key)], check=True, stderr=subprocess.DEVNULL)
    return cert, key


class Receiver:
    """backhaul-receiver on a port of its own."""

    def __init__(self, program, folder, tls=()):
        self.program, self.store, self.tls = program, folder / "receiver.sqlite", tls
        self.log = open(folder / "receiver.log", "ab")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.process = None

    def start(self):
        command = ["setpriv", "--pdeathsig", "KILL", "--", self.program, "--listen", f"127.0.0.1:{self.port}"]
        command += ["--store", str(self.store), *self.tls]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        assert "listening" in self.process.stdout.readline(), "the receiver does not listen"

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def query(self, sql):
        database = sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=30)
        rows = database.execute(sql).fetchall()
        database.close()
        return rows

    def bodies(self):
        """What was put by our producers, as (boot, producer, number), in the order of the agent."""
        rows = self.query("SELECT body FROM records WHERE topic = 'load' ORDER BY epoch, seq")
        return [tuple(map(int, bytes(body).split()[:3])) for (body,) in rows]


def committed(lines):
    """What the guest reports: (boot, producer, number) of each record that was committed."""
    found = []
    for line in lines:
        words = line.split()
        if words[0] == "PUT" and len(words) == 6 and words[5] == "0":
            boot, producer, first, last = map(int, words[1:5])
            found += [(boot, producer, number) for number in range(first, last + 1)]
    return found


def check(receiver, promised, promises_min):
    """Everything promised is there, once and in order; no loss is reported but what a torn write left behind."""
    assert len(promised) >= promises_min, f"only {len(promised)} records committed: that was no load"
    stored = receiver.bodies()
    twice = [name for name, count in Counter(stored).items() if count > 1]
    assert not twice, f"stored twice: {twice[:9]}"
    missing = sorted(set(promised) - set(stored))
    assert not missing, f"{len(missing)} committed and missing: {missing[:9]}"
    gaps = receiver.query('SELECT epoch, "from", "to", why, count FROM gaps')
    assert all(why == "torn" for _, _, _, why, _ in gaps), f"losses: {gaps}"
    last = {}
    for name in stored:
        assert last.get(name[:2], -1) < name[2], f"{name} comes behind {last[name[:2]]}"
        last[name[:2]] = name[2]
    epochs = receiver.query("SELECT DISTINCT epoch FROM records")
    return f"{len(promised)} committed, {len(stored)} stored, {len(gaps)} torn, {len(epochs)} epoch(s)"


def grown(tape):
    """Waits for the next write, since between two commits everything is flushed, and a cut would show nothing."""
    size, deadline = tape.stat().st_size, time.monotonic() + BOOT_S
    while tape.stat().st_size == size and time.monotonic() < deadline:
        time.sleep(0.0002)


class Campaign:
    """One case in a folder of its own."""

    def __init__(self, case, package, receiver, cuts, seed):
        self.case, (self.arch, self.storage) = case, CASES[case]
        self.cuts, self.rng = cuts, random.Random(seed)
        self.folder = image.TREE / "target/vm" / case
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.log = self.folder / "console.log"
        self.initrd = self.folder / "initrd"
        overlay, scheme, trust, tls = {}, "ws", "", []
        if case == "armhf-2038":
            cert, key = certificate(self.folder)
            overlay["/etc/backhaul/ca.pem"], scheme, trust = cert, "wss", 'ca_file = "/etc/backhaul/ca.pem"'
            tls = ["--tls-cert", str(cert), "--tls-key", str(key)]
        self.receiver = Receiver(receiver, self.folder, tls)
        config = CONFIG.format(port=self.receiver.port, scheme=scheme, trust=trust)
        overlay["/etc/backhaul/conf.d/vm.toml"] = config.encode()
        self.initrd.write_bytes(image.build(self.arch, self.storage, Path(package), overlay))
        self.kernel = image.kernel(self.arch)
        self.promised = []

    def boot(self, number, mode, options, **more):
        words = {"STORAGE": self.storage, "BOOT": number, "MODE": mode, **more}
        return Machine(self.arch, self.kernel, self.initrd, words, options, self.log)

    def wait_drained(self, machine):
        """Until all that was promised is stored."""
        promised, deadline = set(self.promised), time.monotonic() + BOOT_S
        while not promised <= set(self.receiver.bodies()) and time.monotonic() < deadline:
            machine.wait("the guest runs", 1, lambda lines: True)
            time.sleep(0.5)

    def run_disk(self):
        """Boots and cuts; each machine finds what the cut before it has left."""
        disks = [self.folder / "disk.a", self.folder / "disk.b"]
        before, after = disks
        with open(after, "wb") as empty:
            empty.truncate(DISK_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(after)], check=True)
        tape = self.folder / "film"
        for number in range(self.cuts + 1):
            before, after = after, before
            last = number == self.cuts
            # Every other life is without an upstream: what is promised there is on the disk alone.
            if number % 2 == 0 or last:
                self.receiver.stop()
                self.receiver.start()
            else:
                self.receiver.stop()
            # The machine writes to a copy and, where the disk has a cache, the cut is made of the film.
            shutil.copyfile(before, after)
            tape.write_bytes(b"")
            machine = self.boot(number, "drain" if last else "produce",
                                disk(self.storage, after, tape if self.storage == "virtio" else None))
            try:
                machine.wait(f"boot {number}", BOOT_S, lambda lines: any(line.startswith("READY") for line in lines))
                if last:
                    self.wait_drained(machine)
                else:
                    puts = self.rng.randrange(5, 40)
                    machine.wait("puts", BOOT_S, lambda lines: len(committed(lines)) >= puts)
                    time.sleep(self.rng.uniform(0, 1.5))
                    if self.storage == "virtio":
                        grown(tape)
            finally:
                machine.cut_power()
            new = committed(machine.lines)
            self.promised += new
            words = ""
            if self.storage == "virtio":
                words = f", {film.develop(before, tape, after, self.rng)} writes unflushed"
            print(f"boot {number}: {len(new)} committed{words}", flush=True)

    def run_2038(self):
        """Over the second in which 32 bits overflow, in the middle of a session; then a new session; then a power cut
        and the same day once more."""
        image_file = self.folder / "disk"
        with open(image_file, "wb") as empty:
            empty.truncate(DISK_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image_file)], check=True)
        self.receiver.start()
        for number in range(2):
            machine = self.boot(number, "produce", disk(self.storage, image_file),
                                CLOCK=OVERFLOW_S - 3600, CLOCK_UP=OVERFLOW_S - 10)
            try:
                machine.wait("records of the time after", BOOT_S + 120, lambda _: self.after_overflow(number) >= 20)
                print(f"boot {number}: the session goes on, and records are stamped rightly", flush=True)
                if number == 0:
                    # A new one is another matter: OpenSSL before Debian 13 asks a clock of 32 bits on armhf.
                    self.receiver.stop()
                    self.receiver.start()
                    refused = "certificate is not yet valid"
                    machine.wait("the limit that docs/testing.md states", BOOT_S, lambda _: machine.said(refused))
                    had = len(committed(machine.lines))
                    machine.wait("records on flash", BOOT_S, lambda lines: len(committed(lines)) > had + 20)
                    print(f"boot {number}: no new TLS session ({refused}), and records go to flash", flush=True)
            finally:
                machine.cut_power()
                self.promised += committed(machine.lines)
        machine = self.boot(2, "drain", disk(self.storage, image_file), CLOCK=OVERFLOW_S - 3600)
        try:
            self.wait_drained(machine)
        finally:
            machine.cut_power()

    def after_overflow(self, boot):
        """How many records of a boot were stored whose time is beyond 32 bits."""
        rows = self.receiver.query(f"SELECT body FROM records WHERE topic = 'load' AND at >= {OVERFLOW_S * 1000}")
        return sum(int(bytes(body).split()[0]) == boot for (body,) in rows)

    def run_nand(self):
        """One boot; UBIFS cuts its own power."""
        self.receiver.start()
        machine = self.boot(0, "nand", [], CUTS=self.cuts)
        try:
            machine.wait("the cuts", BOOT_S * (1 + self.cuts), lambda lines: any(line.startswith("READY") for line in lines))
            self.promised = committed(machine.lines)
            self.wait_drained(machine)
        finally:
            machine.cut_power()
        lives = [line.split() for line in machine.lines if line.startswith("CUT")]
        cuts = sum(ended == "1" for _, _, ended in lives)
        assert cuts == self.cuts, f"{cuts} cuts: {lives}"
        where = ", ".join(re.findall(r"power_cut_emulated.*: failing in (.*)", machine.text))
        print(f"{cuts} cuts by UBIFS in {len(lives)} lives: {where}", flush=True)

    def run(self):
        begun = time.monotonic()
        try:
            case = {"armhf-nand": self.run_nand, "armhf-2038": self.run_2038}
            case.get(self.case, self.run_disk)()
            print(check(self.receiver, self.promised, self.cuts * 5), f"{time.monotonic() - begun:.0f} s", flush=True)
        except BaseException:
            print(f"the consoles and the receiver's store are in {self.folder}", file=sys.stderr)
            raise
        finally:
            self.receiver.stop()


if __name__ == "__main__":
    case, package, receiver = sys.argv[1:4]
    cuts = int(sys.argv[4]) if len(sys.argv) > 4 else 10
    seed = int(sys.argv[5]) if len(sys.argv) > 5 else time.time_ns()
    print(f"{case}: {cuts} cuts; again: SEED={seed}")
    Campaign(case, package, receiver, cuts, seed).run()
