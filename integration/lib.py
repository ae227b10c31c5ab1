"""What the cases share: processes that always end, free ports, mailramp, Postfix, an SMTP client, /metrics.

A case is a program:

    with lib.Case() as case:
        relay = lib.Mailramp(case, new=..., legacy=...)
        relay.start()
        ...
        lib.check(2 + 2 == 4, "arithmetic")

Everything a case starts is the leader of its own process group and is written down, with its start time, before
anything can go wrong. It ends with the case; if the case itself is killed, `lib.py sweep FOLDER` ends what was written
down. Nobody else's process is ever ended. Every wait has a bound.
"""

import contextlib
import datetime
import json
import os
import pathlib
import pwd
import re
import signal
import smtplib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

BINARY = os.environ.get("MAILRAMP", "")


class Failed(Exception):
    """The case does not hold."""


def check(holds, what):
    if not holds:
        raise Failed(what)


def equal(got, want, what):
    check(got == want, f"{what}: {got!r}, not {want!r}")


def wait_until(what, seconds, condition, every=0.05):
    """The first true value of `condition()`; fails after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"after {seconds} s still not: {what}")
        time.sleep(every)


_ports_given = set()


def free_port():
    """A port of 127.0.0.1 that nobody listens on, below the range that outgoing connections draw from."""
    for port in range(21000 + os.getpid() * 7 % 8000, 32000):
        if port in _ports_given:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _ports_given.add(port)
        return port
    raise Failed("no free port")


def noon_zone():
    """A zone in which it is about noon, so that no day ends while a case counts a day's mail."""
    hour = datetime.datetime.now(datetime.timezone.utc).hour
    behind = hour - 12  # the sign of Etc/GMT is the other way round: GMT+3 is three hours behind UTC
    return f"Etc/GMT{behind:+d}" if behind else "UTC"


# ---- processes ----


def _start_time(pid):
    """Of the process, in ticks since boot: tells it from a later one with the same id. None when it is gone."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _group_alive(pid):
    """Whether somebody but a zombie is left in the group that process `pid` led."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = pathlib.Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == pid and fields[0] not in "ZX":
                return True
    return False


def _signal_group(pid, which):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, which)


class Process:
    """A program in a process group of its own."""

    def __init__(self, case, name, command, env=None, **options):
        self.name = name
        self.log = case.dir / f"{name}.log"
        with open(self.log, "ab") as log:
            self.popen = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd=options.pop("cwd", case.dir), env=dict(os.environ, **(env or {})), **options)
        self.pid = self.popen.pid
        with open(case.dir / "processes", "a") as notes:
            notes.write(f"{self.pid} {_start_time(self.pid)}\n")
        case.processes.append(self)

    def running(self):
        return self.popen.poll() is None

    def stop(self, seconds=30):
        """Asks it to end. Returns its exit code; fails if it had to be killed."""
        if self.running():
            self.popen.terminate()
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"{self.name} did not end within {seconds} s of SIGTERM") from None
        self._end_group()
        return code

    def kill(self):
        """SIGKILL, to all of its group at once."""
        _signal_group(self.pid, signal.SIGKILL)
        self.popen.wait(10)
        self._end_group()

    def _end_group(self):
        _end_group(self.pid)


def _end_group(pid, seconds=10):
    """SIGTERM to all of a group, SIGKILL to what is left after a while."""
    # While one member lives the id cannot be given to a stranger.
    for which in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + seconds
        if _group_alive(pid):
            _signal_group(pid, which)
        while _group_alive(pid) and time.monotonic() < end:
            time.sleep(0.05)


def sweep(folder):
    """Ends what a case that was killed has left."""
    folder = pathlib.Path(folder)
    notes = folder / "processes"
    for line in notes.read_text().splitlines() if notes.exists() else []:
        pid, started = line.split()
        if str(_start_time(int(pid))) == started:
            print(f"sweep: ending process {pid}", file=sys.stderr)
            _end_group(int(pid))
    for spool in folder.glob("*/spool"):
        if pid := _postfix_master(spool):
            print(f"sweep: ending Postfix {pid}", file=sys.stderr)
            _end_group(pid)


class Case:
    """The folder of a case and what runs in it; ends it all, whatever happens."""

    def __init__(self):
        folder = os.environ.get("INTEGRATION_DIR")
        check(folder and BINARY, "start the cases with integration/run")
        self.dir = pathlib.Path(folder)
        self.processes = []

    def __enter__(self):
        def interrupted(number, _frame):
            signal.signal(number, signal.SIG_IGN)
            sys.exit(f"interrupted by signal {number}")

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, interrupted)
        return self

    def __exit__(self, kind, error, _trace):
        for process in reversed(self.processes):
            try:
                process.stop(10)
            except Failed as late:
                print(late)
        if kind is Failed:
            print(f"FAILED: {error}", flush=True)
            sys.exit(1)
        return False


def run(command, seconds=60, **options):
    """Runs a command to its end; gives (exit code, standard output, standard error)."""
    done = subprocess.run([str(word) for word in command], stdin=options.pop("stdin", subprocess.DEVNULL), capture_output=True,
                          timeout=seconds, **options)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


# ---- HTTP and metrics ----


def http_get(port, path, seconds=10):
    """(status, text); status 0 when nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=seconds) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except OSError as error:
        return 0, str(error)


def parse_metrics(text):
    """{'name{label="x",…}': value}, labels in alphabetical order."""
    values = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, value = line.rsplit(" ", 1)
            name, brace, labels = series.partition("{")
            if brace:
                labels = ",".join(sorted(re.findall(r'\w+="(?:[^"\\]|\\.)*"', labels)))
                name = f"{name}{{{labels}}}"
            values[name] = float(value)
    return values


# ---- mailramp ----


class Mailramp:
    """The relay under test. `settings` is TOML that comes after the sections every case needs."""

    def __init__(self, case, name="mailramp", new=None, legacy=None, settings="", smtp_port=None, zone=None):
        self.case, self.name = case, name
        self.smtp_port, self.http_port = smtp_port or free_port(), free_port()
        self.hostname = f"{name}.test"
        self.file = case.dir / f"{name}.toml"
        self.data = case.dir / f"{name}-data"
        text = f'''data_dir = "{self.data}"
timezone = "{zone or noon_zone()}"
log = {{ format = "logfmt", level = "info", addresses = "full" }}
http = {{ bind = "127.0.0.1:{self.http_port}" }}
[smtp]
hostname = "{self.hostname}"
[[listeners]]
bind = "127.0.0.1:{self.smtp_port}"
allow_from = ["127.0.0.0/8"]
[new]
host = "127.0.0.1:{new}"
'''
        if legacy:
            text += f'[legacy]\nhost = "127.0.0.1:{legacy}"\n'
        # Short delays, so that what is tried again is tried within the case's patience.
        text += '[queue]\nretry = ["1s", "2s"]\ndisk = { max = "2GB", min_free = "20MB" }\n' + settings
        self.file.write_text(text)
        self.process = None

    def command(self, *words, seconds=30):
        return run([BINARY, *words, "--config", self.file], seconds)

    def start(self, *words, seconds=30):
        """Starts it, with these words after `run`, and waits until it says that it is ready."""
        self.process = Process(self.case, self.name, [BINARY, "run", *words, "--config", self.file])

        def ready():
            check(self.process.running(), f"{self.name} ended at its start, exit {self.process.popen.poll()}")
            return http_get(self.http_port, "/readyz", 3)[0] == 200

        wait_until(f"{self.name} is ready", seconds, ready)
        return self

    def stop(self):
        equal(self.process.stop(60), 0, f"exit code of {self.name} on SIGTERM")

    def kill(self):
        self.process.kill()

    def metrics(self):
        status, text = http_get(self.http_port, "/metrics")
        equal(status, 200, "status of /metrics")
        return parse_metrics(text)

    def status(self):
        code, out, err = self.command("status", "--json")
        equal(code, 0, f"exit code of `mailramp status --json` ({err.strip()})")
        return json.loads(out)

    def queued(self):
        """Messages that are not settled yet."""
        values = self.metrics()
        return sum(value for series, value in values.items() if series.startswith("mailramp_queue_messages{"))

    def under_way(self):
        """Messages that still move by themselves: not those that were put aside."""
        values, states = self.metrics(), ("held", "ready", "deferred", "inflight")
        return sum(values[f'mailramp_queue_messages{{state="{state}"}}'] for state in states)

    def wait_settled(self, seconds):
        wait_until(f"nothing in {self.name} is under way", seconds, lambda: self.under_way() == 0, 0.2)

    def wait_empty(self, seconds):
        wait_until(f"the queue of {self.name} is empty", seconds, lambda: self.queued() == 0, 0.2)


# ---- Postfix ----

_MAIN = """compatibility_level = 3.6
queue_directory = {dir}/spool
data_directory = {dir}/data
maillog_file = {log}
maillog_file_prefixes = {logs}
myhostname = {host}
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
# Whatever the recipient: into one folder, a file per delivery.
virtual_mailbox_domains = static:all
virtual_mailbox_maps = static:box/
virtual_mailbox_base = {dir}/mail
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
virtual_mailbox_limit = 0
virtual_destination_recipient_limit = 1
message_size_limit = 52428800
# Nothing is rewritten and nothing added but the trace headers.
local_header_rewrite_clients =
always_add_missing_headers = no
notify_classes =
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_client_connection_count_limit = 0
smtpd_tls_security_level = none
in_flow_delay = 0s
"""

_MASTER = """127.0.0.1:{port} inet n - n - 100 smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
pickup unix n - n 60 1 pickup
postlog unix-dgram n - n - 1 postlogd
"""


def _postfix_master(spool):
    """The process that runs the Postfix with this queue directory, and leads its group. It works in that directory,
    which tells it from a stranger with the same id."""
    try:
        pid = int((spool / "pid/master.pid").read_text())
        return pid if os.path.samefile(f"/proc/{pid}/cwd", spool) else None
    except (OSError, ValueError):
        return None


class Postfix:
    """A real Postfix of its own, on loopback, that delivers whatever it is sent into one Maildir."""

    def __init__(self, case, name):
        self.case, self.name, self.port = case, name, free_port()
        self.host = f"{name}.test"
        self.dir = case.dir / name
        user = pwd.getpwnam("postfix")
        nobody = pwd.getpwnam("nobody")
        for folder in ("etc", "spool", "data", "mail"):
            (self.dir / folder).mkdir(parents=True)
        for folder in (case.dir, self.dir):
            folder.chmod(0o755)
        os.chown(self.dir / "data", user.pw_uid, user.pw_gid)
        os.chown(self.dir / "mail", nobody.pw_uid, nobody.pw_gid)
        values = dict(dir=self.dir, host=self.host, port=self.port, uid=nobody.pw_uid, gid=nobody.pw_gid,
                      log=case.dir / f"{name}-mail.log", logs=case.dir)
        (self.dir / "etc/main.cf").write_text(_MAIN.format(**values))
        (self.dir / "etc/master.cf").write_text(_MASTER.format(**values))

    def start(self, seconds=30):
        self.case.processes.append(self)
        code, out, err = run(["postfix", "-c", self.dir / "etc", "start"], seconds)
        equal(code, 0, f"exit code of Postfix {self.name} ({out}{err})")

        def greets():
            try:
                with socket.create_connection(("127.0.0.1", self.port), 5) as peer:
                    greeting = peer.recv(200)
                    peer.sendall(b"QUIT\r\n")
                    return greeting.startswith(b"220")
            except OSError:
                return False

        wait_until(f"Postfix {self.name} greets", seconds, greets)
        return self

    def stop(self, seconds=10):
        if pid := _postfix_master(self.dir / "spool"):
            _end_group(pid, seconds)

    def queued(self):
        folders = ("maildrop", "incoming", "active", "deferred", "hold", "corrupt")
        return sum(len(files) for folder in folders for _, _, files in os.walk(self.dir / "spool" / folder))

    def wait_empty(self, seconds=60):
        wait_until(f"Postfix {self.name} has delivered all", seconds, lambda: self.queued() == 0, 0.1)

    def stored(self):
        """Everything delivered so far."""
        folder = self.dir / "mail/box/new"
        return [Stored(path.read_bytes()) for path in sorted(folder.iterdir())] if folder.exists() else []


class Stored:
    """One delivery as virtual(8) wrote it: its own headers, Postfix's Received, and below what Postfix was sent.

    `recipient`: of this delivery. `received`: the Received lines on top of `rest`, first the one of Postfix. Lines end
    in LF, which is how Postfix stores them.
    """

    OWN = (b"return-path", b"x-original-to", b"delivered-to")

    def __init__(self, octets):
        self.own, rest = {}, octets
        while True:
            header, below = take_header(rest)
            name = header.partition(b":")[0].lower()
            if name not in self.OWN or name in self.own:
                break
            self.own[name], rest = header.partition(b":")[2].strip(), below
        self.recipient = self.own.get(b"delivered-to", b"").decode()
        check(name == b"received", f"Postfix's Received line is not on top of what it stored: {rest[:200]!r}")
        self.postfix_received, self.rest = header, below


def take_header(octets):
    """The first header, with its continuation lines, and what comes after it."""
    end = octets.find(b"\n")
    while end >= 0 and octets[end + 1:end + 2] in (b" ", b"\t"):
        end = octets.find(b"\n", end + 1)
    end = len(octets) if end < 0 else end + 1
    return octets[:end], octets[end:]


# ---- SMTP client ----


class Client:
    """An application: one connection, one message after the other."""

    def __init__(self, port, seconds=60):
        self.smtp = smtplib.SMTP("127.0.0.1", port, local_hostname="app.test", timeout=seconds)
        self.smtp.ehlo()

    def send(self, sender, recipients, octets, options=()):
        """Sends the octets as they are (lines end in CRLF; leading dots are doubled on the way). Gives (code, text) of
        the reply to the final dot, or of the first command that was refused."""
        for code, text in self._envelope(sender, recipients, options):
            if code not in (250, 251):
                self.smtp.rset()
                return code, text.decode()
        code, text = self.smtp.data(octets)
        return code, text.decode()

    def _envelope(self, sender, recipients, options):
        yield self.smtp.mail(sender, list(options))
        for recipient in recipients:
            yield self.smtp.rcpt(recipient)

    def close(self):
        with contextlib.suppress(OSError, smtplib.SMTPException):
            self.smtp.quit()


QUEUE_ID = r"[0-9A-HJKMNP-TV-Z]{12}"


def queue_id(reply):
    """The id that the reply to the final dot told."""
    found = re.findall(rf"\b{QUEUE_ID}\b", reply)
    equal(len(found), 1, f"queue ids in the reply {reply!r}")
    return found[0]


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "sweep":
        sweep(sys.argv[2])
    else:
        sys.exit("usage: lib.py sweep FOLDER")
