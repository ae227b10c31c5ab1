"""SMTP seen from outside the relay: a strict server that keeps octets, and a tap that keeps what a client said.

Both give `Transaction`s: the envelope with its parameters, and the message's octets without the doubled dots. Neither
alters anything; the server answers 500 to whatever is not as RFC 5321 wants it, so that a sloppy sender is seen.
"""

import dataclasses
import re
import socket
import socketserver
import threading

MESSAGE_MAX_BYTES = 50_000_000
PATH = re.compile(rb"<(?:[^<>\r\n\0 ]*)>")
EXTENSIONS = (b"PIPELINING", b"SIZE %d" % MESSAGE_MAX_BYTES, b"8BITMIME", b"SMTPUTF8", b"DSN", b"ENHANCEDSTATUSCODES")
MAIL_PARAMETERS = (b"SIZE", b"BODY", b"SMTPUTF8", b"RET", b"ENVID")
RCPT_PARAMETERS = (b"NOTIFY", b"ORCPT")


@dataclasses.dataclass
class Transaction:
    sender: str = ""
    parameters: tuple = ()  # of MAIL, without SIZE, in alphabetical order
    recipients: list = dataclasses.field(default_factory=list)  # (address, parameters) in the order given
    octets: bytes = b""
    by: str = ""  # DATA or BDAT


def _path(command, keyword):
    """(address, parameters) of `MAIL FROM:<address> parameters`; None when it is no such thing."""
    if not command.upper().startswith(keyword):
        return None
    path = PATH.match(command, len(keyword))
    if not path or command[path.end():path.end() + 1] not in (b"", b" "):
        return None
    return path.group()[1:-1].decode("utf-8", "surrogateescape"), command[path.end():].split()


def _kept(parameters):
    return tuple(sorted(p.decode("utf-8", "surrogateescape") for p in parameters if not p.upper().startswith(b"SIZE=")))


class _Broken(Exception):
    """The peer is gone, or says what it must not say."""


class _Session(socketserver.StreamRequestHandler):
    timeout = 60  # seconds without an octet

    def reply(self, text):
        self.wfile.write(text + b"\r\n")

    def line(self, limit=4096):
        line = self.rfile.readline(limit)
        if not line.endswith(b"\r\n") or b"\r" in line[:-2] or b"\0" in line:
            raise _Broken(f"a line that does not end in CRLF: {line[-80:]!r}" if line else "")
        return line[:-2]

    def handle(self):
        try:
            self.serve()
        except _Broken as fault:
            if str(fault):
                self.server.sink.faults.append(str(fault))
        except OSError:
            pass

    def serve(self):
        self.reply(b"220 sink.test ESMTP")
        while True:
            command = self.line()
            verb = command[:4].upper()
            if verb == b"EHLO":
                self.reply(b"250-sink.test\r\n" + b"\r\n".join(b"250-" + e for e in EXTENSIONS[:-1]) + b"\r\n250 " + EXTENSIONS[-1])
            elif verb == b"MAIL":
                self.transaction = None
                path = _path(command, b"MAIL FROM:")
                if self.refused(path, MAIL_PARAMETERS, command):
                    continue
                self.transaction = Transaction(path[0], _kept(path[1]), by="DATA")
                self.utf8 = b"SMTPUTF8" in (p.upper() for p in path[1])
                if not path[0].isascii() and not self.utf8:
                    self.fault(f"an address that is not ASCII, without SMTPUTF8: {command!r}")
                    continue
                self.reply(b"250 2.1.0 ok")
            elif verb == b"RCPT" and self.transaction:
                path = _path(command, b"RCPT TO:")
                if self.refused(path, RCPT_PARAMETERS, command):
                    continue
                if not path[0].isascii() and not self.utf8:
                    self.fault(f"an address that is not ASCII, without SMTPUTF8: {command!r}")
                    continue
                self.transaction.recipients.append((path[0], _kept(path[1])))
                self.reply(b"250 2.1.5 ok")
            elif verb == b"DATA" and command[4:] == b"" and self.transaction and self.transaction.recipients:
                self.reply(b"354 go ahead")
                self.take(self.data())
            elif verb in (b"RSET", b"NOOP"):
                self.transaction = None
                self.reply(b"250 2.0.0 ok")
            elif verb == b"QUIT":
                self.reply(b"221 2.0.0 bye")
                return
            else:
                self.fault(f"unexpected {command!r}")

    transaction = None

    def fault(self, text):
        self.server.sink.faults.append(text)
        self.reply(b"500 5.5.1 no")

    def refused(self, path, known, command):
        if path and all(p.partition(b"=")[0].upper() in known for p in path[1]):
            return False
        self.fault(f"not understood: {command!r}")
        return True

    def data(self):
        """The message, dots undoubled. A CR or LF that stands alone, and a line over 1,000 octets, is a fault."""
        lines = []
        while True:
            line = self.rfile.readline(MESSAGE_MAX_BYTES)
            if not line.endswith(b"\r\n"):
                raise _Broken("" if not line else f"a message line that does not end in CRLF: {line[-80:]!r}")
            if b"\r" in line[:-2]:
                raise _Broken(f"a CR that stands alone: {line[:80]!r}")
            if line == b".\r\n":
                return b"".join(lines)
            if len(line) > 1000:
                raise _Broken(f"a line of {len(line)} octets")
            lines.append(line[1:] if line.startswith(b".") else line)

    def take(self, octets):
        self.transaction.octets = octets
        with self.server.sink.lock:
            self.server.sink.taken.append(self.transaction)
        self.transaction = None
        self.reply(b"250 2.0.0 kept")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64


class Sink:
    """The next hop. `take_all()` hands out what came since the last time."""

    def __init__(self):
        self.taken, self.faults, self.lock = [], [], threading.Lock()
        server = _Server(("127.0.0.1", 0), _Session)
        server.sink = self
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def count(self):
        with self.lock:
            return len(self.taken)

    def take_all(self):
        with self.lock:
            taken, self.taken = self.taken, []
            return taken


# ---- the tap ----


class _Tapped(socketserver.BaseRequestHandler):
    def handle(self):
        said = bytearray()
        with socket.create_connection(("127.0.0.1", self.server.tap.target), 10) as relay:
            back = threading.Thread(target=_copy, args=(relay, self.request, None), daemon=True)
            back.start()
            _copy(self.request, relay, said)
            back.join(30)
        self.server.tap.sessions.append(bytes(said))


def _copy(source, target, keep):
    source.settimeout(120)
    try:
        while octets := source.recv(65536):
            if keep is not None:
                keep += octets
            target.sendall(octets)
    except OSError:
        pass
    try:
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


class Tap:
    """Stands between client and relay and keeps each octet that the client sends, in clear."""

    def __init__(self, target):
        self.target, self.sessions = target, []
        server = _Server(("127.0.0.1", 0), _Tapped)
        server.tap = self
        self.server = server
        self.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def take_all(self):
        """The transactions of all sessions that have ended since the last time, as the client wrote them."""
        sessions, self.sessions = self.sessions, []
        return [transaction for session in sessions for transaction in transactions(session)]


def transactions(session):
    """What a client's octets say, when every command of it was taken."""
    found, current, at = [], None, 0
    while (end := session.find(b"\r\n", at)) >= 0:
        command, at = session[at:end], end + 2
        verb = command[:4].upper()
        if verb == b"MAIL":
            path = _path(command, b"MAIL FROM:")
            current = Transaction(path[0], _kept(path[1])) if path else None
        elif verb == b"RCPT" and current:
            path = _path(command, b"RCPT TO:")
            current.recipients.append((path[0], _kept(path[1])))
        elif verb == b"DATA" and current:
            end = session.find(b"\r\n.\r\n", at - 2)  # the CRLF of the command may begin it
            if end < 0:
                break  # given up by the client
            current.octets, current.by = re.sub(rb"(?m)^\.", b"", session[at:end + 2]), "DATA"
            at = end + 5
            found.append(current)
            current = None
        elif verb == b"BDAT" and current:
            size = int(command.split()[1])
            current.octets += session[at:at + size]
            current.by, at = "BDAT", at + size
            if command.upper().endswith(b"LAST"):
                found.append(current)
                current = None
        elif verb == b"RSET":
            current = None
    return found
