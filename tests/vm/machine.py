"""A guest: QEMU as a process, its serial console line by line, its power."""

import subprocess
import threading
import time

QEMU = {
    "arm64": ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-m", "256"],
    # Without highmem=off a 32-bit kernel does not see its PCI bus.
    "armhf": ["qemu-system-arm", "-M", "virt,highmem=off", "-cpu", "cortex-a15", "-m", "384"],
}


def disk(storage, image, film=None):
    """The options that make a file the guest's disk; `film`: a file that takes each write and flush, in order."""
    nodes = [f"driver=file,node-name=image,filename={image}"]
    node = "image"
    if film:
        nodes += [f"driver=file,node-name=film,filename={film}", "driver=blklogwrites,node-name=filmed,file=image,log=film"]
        node = "filmed"
    devices = {
        "sd": ["-device", "sdhci-pci", "-device", f"sd-card,drive={node}"],
        "virtio": ["-device", f"virtio-blk-pci,drive={node},write-cache=on"],
    }
    return [word for node in nodes for word in ("-blockdev", node)] + devices[storage]


class Machine:
    """A running guest. What it says is kept in `lines` and in the file `log`."""

    def __init__(self, arch, kernel, initrd, environment, options, log):
        words = " ".join(f"{name}={value}" for name, value in environment.items())
        append = f"console=ttyAMA0 quiet loglevel=5 panic=-1 random.trust_bootloader=on rdinit=/init {words}"
        command = [*QEMU[arch], "-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", str(kernel)]
        command += ["-initrd", str(initrd), "-append", append]
        command += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=", *options]
        # Dies with this process, whatever happens to it.
        command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        self.lines, self.text = [], ""
        self._log = open(log, "ab", buffering=0)
        self._log.write(f"\n=== {' '.join(command)}\n".encode())
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log)
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self._log.write(line)
            self.text += line.decode(errors="replace")
            # The console is shared with the log: what the guest says begins anywhere in a line.
            _, mark, words = line.decode(errors="replace").strip().rpartition("@ ")
            if mark:
                with self._news:
                    self.lines.append(words)
                    self._news.notify_all()

    def wait(self, what, seconds, holds):
        """Waits until `holds(lines)`, or fails."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not holds(self.lines):
                failed = [line for line in self.lines if line.startswith("FAILED")]
                if failed:
                    raise AssertionError(f"the guest: {failed[0]}")
                if self._process.poll() is not None:
                    raise AssertionError(f"{what}: the machine ended by itself")
                if time.monotonic() > deadline:
                    raise AssertionError(f"{what}: not within {seconds} s")
                self._news.wait(0.2)

    def said(self, words):
        """Whether the console, the agent's log on it included, has said this."""
        return words in self.text

    def cut_power(self):
        """SIGKILL; what it has said until then is in `lines` afterwards."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._log.close()
