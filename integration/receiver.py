"""A receiving server that keeps who got what, and refuses recipients of a domain when it is told to, as providers do."""

import asyncio
import collections
import re

LIMIT_OCTETS = 8 << 20


class Receiver:
    """Answers `at_rcpt[domain]` to RCPT and `at_dot[domain]` to the final dot, where there is one; else it takes the mail.

    `got` counts (number in the Subject, recipient). Mail without a sender is a report: `reports` has (recipient, octets).
    `refused` counts (recipient, the reply's first 15 octets). A reply that begins with 421 ends the connection.
    """

    def __init__(self, loop):
        self.at_rcpt, self.at_dot = {}, {}
        self.got, self.refused, self.reports = collections.Counter(), collections.Counter(), []
        self.headers = []
        self.server = loop.run(asyncio.start_server(self._session, "127.0.0.1", 0, limit=LIMIT_OCTETS))
        self.port = self.server.sockets[0].getsockname()[1]

    def recipients_of(self, number):
        """Who got this message, each as often as they did."""
        return sorted(who for (n, who), copies in self.got.items() if n == number for _ in range(copies))

    async def _session(self, reader, writer):
        try:
            writer.write(b"220 mx.example ESMTP\r\n")
            sender, recipients, going_on = "", [], True
            while going_on and (line := await reader.readline()):
                verb = line[:4].upper()
                reply = b"250 2.0.0 ok\r\n"
                if verb == b"EHLO":
                    reply = b"250-mx.example\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
                elif verb == b"MAIL":
                    sender, recipients = _path(line), []
                elif verb == b"RCPT":
                    recipient = _path(line)
                    if said := self.at_rcpt.get(_domain(recipient)):
                        reply = self._refuse(said, [recipient])
                    else:
                        recipients.append(recipient)
                elif verb == b"DATA" and not recipients:
                    reply = b"503 5.5.1 no recipients\r\n"
                elif verb == b"DATA":
                    writer.write(b"354 go on\r\n")
                    await writer.drain()
                    octets = await reader.readuntil(b"\r\n.\r\n")
                    said = next((said for who in recipients if (said := self.at_dot.get(_domain(who)))), None)
                    reply = self._refuse(said, recipients) if said else self._take(sender, recipients, octets)
                elif verb == b"QUIT":
                    reply, going_on = b"221 2.0.0 bye\r\n", False
                writer.write(reply)
                await writer.drain()
                going_on = going_on and not reply.startswith(b"421")
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _refuse(self, said, recipients):
        self.refused.update((who, said[:15]) for who in recipients)
        return said.encode() + b"\r\n"

    def _take(self, sender, recipients, octets):
        if not sender:
            self.reports += [(who, octets) for who in recipients]
            return b"250 2.0.0 taken\r\n"
        number = int(re.search(rb"^Subject: (\d+)\r\n", octets, re.MULTILINE)[1])
        self.headers.append((number, octets.partition(b"\r\n\r\n")[0]))
        self.got.update((number, who) for who in recipients)
        return b"250 2.0.0 taken\r\n"


def _path(line):
    return re.search(rb"<([^>]*)>", line)[1].decode()


def _domain(recipient):
    return recipient.rpartition("@")[2]
