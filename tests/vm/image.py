"""The guest's root: an initramfs of busybox, the agent's package, the modules that a case needs."""

import re
import stat
import subprocess
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

DEBIAN = {
    "arm64": ["linux-image-arm64", "busybox-static"],
    "armhf": ["linux-image-armmp", "busybox-static", "mtd-utils"],
}
NETWORK = ["virtio_pci", "virtio_net"]
STORAGE = {
    "sd": ["sdhci-pci", "ext4", "crc32c_generic"],
    "virtio": ["virtio_blk", "ext4", "crc32c_generic"],
    # Before ubifs, which takes the compressors that it finds.
    "nand": ["lzo", "lzo-rle", "deflate", "zstd", "nandsim", "ubi", "ubifs"],
}
# 64 MiB in pages of 2 KiB and erase blocks of 128 KiB.
OPTIONS = {"nandsim": "id_bytes=0x20,0xa2,0x00,0x15", "ubi": "mtd=0"}


def sysroot(arch):
    """The folder with Debian's packages of that architecture."""
    command = ["sh", str(TREE / "deploy/sysroot"), arch, "libssl-dev", "libssl3", *DEBIAN[arch]]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def kernel(arch):
    """The kernel to boot."""
    return next((sysroot(arch) / "boot").glob("vmlinuz-*"))


class Cpio:
    """An initramfs in the kernel's own format ("newc")."""

    def __init__(self):
        self.bytes = bytearray()
        self.made = set()

    def _add(self, path, mode, content=b"", device=(0, 0)):
        name = path.strip("/").encode() + b"\0"
        fields = [len(self.made) + 1, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0]
        self.bytes += b"070701" + b"".join(b"%08x" % field for field in fields) + name
        for part in (b"", content):
            self.bytes += part
            self.bytes += bytes(-len(self.bytes) % 4)
        self.made.add(path)

    def folder(self, path):
        for parent in [*reversed(Path(path).parents), Path(path)]:
            if str(parent) != "/" and str(parent) not in self.made:
                self._add(str(parent), stat.S_IFDIR | 0o755)

    def file(self, path, content, mode=0o644):
        self.folder(str(Path(path).parent))
        content = content.read_bytes() if isinstance(content, Path) else content
        self._add(path, stat.S_IFREG | mode, content)

    def console(self):
        self.folder("/dev")
        self._add("/dev/console", stat.S_IFCHR | 0o600, device=(5, 1))

    def close(self):
        self._add("TRAILER!!!", 0)
        return bytes(self.bytes)


def modules(root, wanted):
    """The files of these modules and what they depend on, in the order to load them."""
    files = {path.stem.replace("-", "_"): path for path in (root / "lib/modules").rglob("*.ko")}
    order = []

    def add(name):
        path = files.get(name.replace("-", "_"))
        if path is None or path in order:  # built in, or there already
            return
        depends = re.search(rb"(?:^|\0)depends=([^\0]*)\0", path.read_bytes())
        for other in depends.group(1).decode().split(",") if depends else []:
            add(other)
        order.append(path)

    for name in wanted:
        add(name)
    return order


def libraries(arch, agent):
    """What a program that is linked dynamically needs: (path in the guest, file)."""
    tuple_ = {"arm64": "aarch64-linux-gnu", "armhf": "arm-linux-gnueabihf"}[arch]
    folders = [sysroot(arch) / "usr/lib" / tuple_, Path("/usr") / tuple_ / "lib"]
    found, wanted = {}, [agent, *([sysroot(arch) / "usr/sbin/ubimkvol"] if arch == "armhf" else [])]
    while wanted:
        listed = subprocess.run(["readelf", "-dl", str(wanted.pop())], check=True, stdout=subprocess.PIPE, text=True).stdout
        for name in re.findall(r"\(NEEDED\).*\[(.*)\]", listed) + re.findall(r"interpreter: /lib/([^\]]*)", listed):
            if name not in found:
                found[name] = next(folder / name for folder in folders if (folder / name).exists())
                wanted.append(found[name])
    return [(f"/lib/{name}", path) for name, path in found.items()]


def build(arch, storage, package, overlay):
    """The initramfs; `package`: a folder with what the agent's package holds, `overlay`: files on top, by path."""
    root, cpio = sysroot(arch), Cpio()
    for path in ("/dev", "/proc", "/sys", "/run", "/tmp", "/var/lib"):
        cpio.folder(path)
    cpio.console()
    cpio.file("/bin/busybox", root / "bin/busybox", 0o755)
    lines = []
    for path in modules(root, NETWORK + STORAGE[storage]):
        cpio.file(f"/lib/{path.name}", path)
        lines.append(f"/lib/{path.name} {OPTIONS.get(path.stem, '')}\n")
    cpio.file("/lib/modules.list", "".join(lines).encode())
    for path, file in libraries(arch, package / "usr/bin/backhaul"):
        cpio.file(path, file, 0o755)
    if arch == "armhf":
        cpio.file("/usr/sbin/ubimkvol", root / "usr/sbin/ubimkvol", 0o755)
    cpio.file("/etc/passwd", b"root:x:0:0:root:/:/bin/sh\nbackhaul:x:990:990:agent:/:/bin/false\n")
    cpio.file("/etc/group", b"root:x:0:\nbackhaul:x:990:\n")
    cpio.file("/etc/machine-id", b"0123456789abcdef0123456789abcdef\n")
    for file in sorted(path for path in package.rglob("*") if path.is_file()):
        if "doc" not in file.parts:
            cpio.file(f"/{file.relative_to(package)}", file, stat.S_IMODE(file.stat().st_mode))
    for path, content in overlay.items():
        cpio.file(path, content)
    cpio.file("/init", HERE / "init", 0o755)
    return cpio.close()
