"""A server that knows nothing of us: Debian's python3-websockets. Each message is a line of the file.

    /usr/bin/python3 server.py PORT FILE [MESSAGE_BYTES_MAX]
"""

import asyncio
import sys

import websockets

PORT, FILE = int(sys.argv[1]), sys.argv[2]
MESSAGE_BYTES_MAX = int(sys.argv[3]) if len(sys.argv) > 3 else 1 << 20


async def main():
    with open(FILE, "a", encoding="utf-8", buffering=1) as out:

        async def take(socket, *_path):
            await socket.send("hello, whoever you are")
            try:
                async for message in socket:
                    out.write((message if isinstance(message, str) else "hex:" + message.hex()) + "\n")
            except websockets.ConnectionClosed:
                pass

        async with websockets.serve(take, "127.0.0.1", PORT, max_size=MESSAGE_BYTES_MAX):
            await asyncio.Future()


asyncio.run(main())
