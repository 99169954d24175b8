"""What QEMU's blklogwrites recorded (the format of Linux's dm-log-writes), and the disk that a power cut makes of it."""

import struct

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD = 1, 2, 4


def events(path):
    """Each write and flush in order: (offset, bytes, flags). The last one may be torn: then the machine died in it."""
    with open(path, "rb") as log:
        head = log.read(28)
        if len(head) < 28:
            return
        magic, _, _, sector = struct.unpack("<QQQI", head)
        # Written with the first flush; until then this sector is a hole.
        assert magic in (0, MAGIC), f"{path}: no film"
        sector = sector or 512
        log.seek(sector)
        while len(entry := log.read(sector)) == sector:
            first, count, flags, _ = struct.unpack_from("<QQQQ", entry)
            if flags & DISCARD:
                content = b""
            else:
                content = log.read(count * sector)
                if len(content) < count * sector or (count == 0 and not flags):
                    return
            yield first * sector, content, flags


def develop(before, film, image, rng):
    """The disk after a cut: `before` and what was filmed since; of what was not flushed each sector got there or did
    not, none of them, or all. Returns how many writes were unflushed."""
    pending = []
    with open(image, "wb") as disk, open(before, "rb") as source:
        while chunk := source.read(1 << 20):
            disk.write(chunk)

        def settle(chance):
            for offset, content, _ in pending:
                for at in range(0, len(content), 512):
                    if rng.random() < chance:
                        disk.seek(offset + at)
                        disk.write(content[at : at + 512])
            pending.clear()

        for offset, content, flags in events(film):
            if flags & FLUSH:
                settle(1)
            if content:
                pending.append((offset, content, flags))
            if flags & FUA:
                settle(1)
        unflushed = len(pending)
        settle(rng.choice([0, 0.2, 0.5, 0.8, 1]))
    return unflushed
