"""Much mail at once, for cases that cut the relay off: an application that never pauses, and next hops that keep count.

Everything runs in threads of the case with an event loop of its own, so that a case can go on with something else. An
acknowledged message is one whose 250 to the final dot was read.
"""

import asyncio
import collections
import re
import threading
import zlib

from lib import check

LIMIT_OCTETS = 8 << 20


class Loop:
    """An event loop in a thread."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coroutine, seconds=60):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(seconds)

    def start(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)


def body(number):
    """The octets of message `number`: most small, one in eight beyond what lies in the database, few in files."""
    size = 1_200_000 if number % 1500 == 700 else 9000 if number % 8 == 0 else 300
    line = b"..%d all work and no play makes jack a dull boy\r\n" % number
    return b"Subject: %d\r\n\r\n" % number + line * (size // len(line) + 1)


class Sink:
    """A next hop that takes everything. `copies` counts by message; an octet changed on the way is noted in `damaged`."""

    def __init__(self, loop, refuse=None, port=0):
        self.copies, self.damaged, self.sums = collections.Counter(), [], {}
        self.refuse = refuse  # a reply to RCPT, if not 250
        self.connections = 0
        self.server = loop.run(asyncio.start_server(self._session, "127.0.0.1", port, limit=LIMIT_OCTETS))
        self.port = self.server.sockets[0].getsockname()[1]

    def recipients(self):
        return sum(self.copies.values())

    async def _session(self, reader, writer):
        self.connections += 1
        try:
            writer.write(b"220 sink.example ESMTP\r\n")
            while line := await reader.readline():
                verb = line[:4].upper()
                if verb == b"EHLO":
                    writer.write(b"250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n")
                elif verb == b"RCPT" and self.refuse:
                    writer.write(self.refuse)
                elif verb == b"DATA":
                    writer.write(b"354 go on\r\n")
                    await writer.drain()
                    self._take(await reader.readuntil(b"\r\n.\r\n"))
                    writer.write(b"250 2.0.0 taken\r\n")
                elif verb == b"QUIT":
                    writer.write(b"221 bye\r\n")
                    await writer.drain()
                    break
                else:
                    writer.write(b"250 ok\r\n")
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _take(self, octets):
        found = re.search(rb"^Subject: (\d+)\r\n", octets, re.MULTILINE)
        if not found:
            # A report of the relay's own.
            self.damaged.append(octets[:200])
            return
        number = int(found[1])
        self.copies[number] += 1
        got = octets[found.start():-3].replace(b"\r\n..", b"\r\n.")
        if number not in self.sums:
            self.sums[number] = zlib.crc32(body(number))
        if zlib.crc32(got) != self.sums[number]:
            self.damaged.append(octets[:200])


class Load:
    """An application with `sessions` connections that sends one message after the other until it is cut off."""

    def __init__(self, loop, sessions=8, first=1):
        self.loop, self.sessions, self.next = loop, sessions, first
        self.acknowledged, self.refused, self.tasks = [], collections.Counter(), []

    def begin(self, port):
        self.tasks = [self.loop.start(self._send(port)) for _ in range(self.sessions)]

    def end(self, seconds=30):
        """Waits until every connection was cut."""
        for task in self.tasks:
            task.result(seconds)
        self.tasks = []

    def cancel(self):
        for task in self.tasks:
            task.cancel()
        for task in self.tasks:
            try:
                task.result(10)
            except BaseException:  # noqa: BLE001 a cancelled task
                pass
        self.tasks = []

    async def _send(self, port):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
        except OSError:
            return
        try:
            await self._reply(reader, b"220")
            writer.write(b"EHLO app.example\r\n")
            await self._reply(reader, b"250")
            while True:
                number, self.next = self.next, self.next + 1
                writer.write(b"MAIL FROM:<app@example.com>\r\nRCPT TO:<m%d@example.net>\r\nDATA\r\n" % number)
                replies = [await self._reply(reader) for _ in range(3)]
                if not replies[2].startswith(b"354"):
                    self.refused[min(r for r in replies if not r.startswith(b"250"))[:9]] += 1
                    writer.write(b"RSET\r\n")
                    await self._reply(reader, b"250")
                    await asyncio.sleep(0.05)
                    continue
                writer.write(body(number).replace(b"\r\n.", b"\r\n..") + b".\r\n")
                await writer.drain()
                reply = await self._reply(reader)
                if reply.startswith(b"250"):
                    self.acknowledged.append(number)
                else:
                    self.refused[reply[:9]] += 1
        except (OSError, EOFError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _reply(self, reader, code=None):
        while True:
            line = await reader.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            if line[3:4] != b"-":
                break
        if code and not line.startswith(code):
            raise EOFError
        return line


def account(acknowledged, new, legacy):
    """(lost, repeated): numbers acknowledged that came nowhere, and copies beyond the first. Fails for what came by both
    servers, and for octets that were changed."""
    check(not new.damaged and not legacy.damaged, f"changed on the way: {(new.damaged + legacy.damaged)[:1]}")
    both = [number for number in new.copies if number in legacy.copies]
    check(not both, f"{len(both)} came by both servers, such as {both[:5]}")
    arrived = new.copies + legacy.copies
    lost = [number for number in acknowledged if number not in arrived]
    return lost, sum(arrived.values()) - len(arrived)

