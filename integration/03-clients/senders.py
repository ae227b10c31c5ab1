"""Messages, and the clients that send them: each as an application would, with the settings in `clients/`.

Nothing here judges; what a client says that it sent, or why it could not, it leaves in a folder for `run` to compare.
"""

import json
import os
import pathlib
import random
import re
import shutil
import smtplib
import subprocess
import sys

import lib
from lib import check, equal

HERE = pathlib.Path(__file__).resolve().parent
PASSWORD = "correct horse/battery=staple"  # ASCII: smtplib can send no other
SENDER = "billing@app.example"
CLIENT_SECONDS = 120  # for the five messages of one client
PACKAGES = pathlib.Path(os.environ.get("INTEGRATION_PACKAGES", ""))

# ---- messages ----

TEXT = "Dear customer,\n.\n..\n.your invoice is below.\n  indented   \n\tand with a tab\t\n\nFrom here on: nothing.\n-- \nBilling\n"
TEXT_8BIT = "Grüße, číslo, 番号 ✓\n.\nzwölf Boxkämpfer\n.ü\n"


class Mail(dict):
    """What one client sends once; the fields are what the programs in `clients/` are told."""

    def __init__(self, case, folder, client, mode, kind):
        address = f"{client}.{mode}.{kind}"
        to = [f"{address}@example.net"]
        if kind == "utf8":
            to = [f"användare.{address}@example.net"]
        several = kind == "several"
        super().__init__(
            kind=kind, to=[f"{n}.{to[0]}" for n in "ab"] if several else to, cc=[f"c.{to[0]}"] if several else [],
            bcc=[f"d.{to[0]}", f"e.{to[0]}"] if several else [], subject=f"{kind} by {client}",
            text=TEXT_8BIT if kind in ("8bit", "utf8") else TEXT, attachment=str(case.dir / "report.bin") if kind == "large" else "",
            dsn=several, envid=address if several else "", **{"from": SENDER})
        # For clients that send what they are given.
        self["raw"], self["raw_lf"] = str(folder / f"{kind}.crlf"), str(folder / f"{kind}.lf")
        octets = self.rendered(case)
        (folder / f"{kind}.lf").write_bytes(octets)
        (folder / f"{kind}.crlf").write_bytes(octets.replace(b"\n", b"\r\n"))
        self["text_file"] = str(folder / f"{kind}.text")
        (folder / f"{kind}.text").write_text(self["text"])

    @property
    def recipients(self):
        return self["to"] + self["cc"] + self["bcc"]

    def rendered(self, case):
        head = [f"From: {SENDER}", f"To: {', '.join(self['to'])}", f"Subject: {self['subject']}", "MIME-Version: 1.0",
                "Date: Mon, 2 Mar 2026 08:00:00 +0000", f"Message-ID: <{random.getrandbits(64):x}@app.example>"]
        head += [f"Cc: {', '.join(self['cc'])}"] if self["cc"] else []
        if self["attachment"]:
            head += ["Content-Type: application/octet-stream", "Content-Transfer-Encoding: base64"]
            return "\n".join(head).encode() + b"\n\n" + case.attachment_base64
        head += ["Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit"]
        return ("\n".join(head) + "\n\n" + self["text"]).encode()


# ---- clients ----


class Programs:
    """The files of `clients/`, made to speak to this relay. `ca`: whom they trust."""

    def __init__(self, case, name, ports, ca):
        self.case, self.folder, self.ports, self.ca = case, case.dir / name, ports, ca
        self.password_file = case.dir / "app.pass"
        self.places = {"127.0.0.1:2525": f"127.0.0.1:{ports['plain']}", "[127.0.0.1]:2525": f"[127.0.0.1]:{ports['plain']}",
                       "relay.example.com": "localhost", "/etc/ssl/mailramp-ca.pem": str(ca),
                       "/etc/mailramp-app.pass": str(self.password_file), "/etc/mailramp-digest.pass": str(case.dir / "digest.pass"),
                       "/etc/postfix/mailramp-password": str(case.dir / "postfix-password")}
        self.numbers = {"2525": ports["plain"], "2526": ports["jobs"], "587": ports["starttls"], "465": ports["implicit"]}
        shutil.copytree(HERE / "clients", self.folder)
        for path in self.folder.rglob("*"):
            if path.is_file():
                path.write_text(self.replaced(path.read_text()))
        (self.folder / "msmtprc").chmod(0o600)

    def replaced(self, text):
        for place, here in self.places.items():
            text = text.replace(place, here)
        for number, here in self.numbers.items():
            text = re.sub(rf"\b{number}\b", str(here), text)
        return text

    def env(self, **more):
        # What takes its authorities from the system's folder is told by the variable of OpenSSL, which Go reads too.
        return dict(os.environ, MAIL_PASSWORD=PASSWORD, SSL_CERT_FILE=str(self.ca), SSL_CERT_DIR="/nonexistent", **more)


class Client:
    """One that is told all five messages at once and leaves KIND.eml, or KIND.error, for each."""

    def __init__(self, name, command, version, utf8=True, env=None):
        self.name, self.command, self.version, self.utf8 = name, command, version, utf8
        self.slug = re.sub(r"\W+", "", name).lower()
        self.more_env = env or (lambda mode: {})

    def send(self, programs, mode, mails, folder):
        job = folder / "job.json"
        job.write_text(json.dumps({"folder": str(folder), "mails": mails}))
        self.run(programs, [*self.command(programs.folder, mode), mode, job], self.more_env(mode))

    def run(self, programs, command, env):
        try:
            code, out, err = lib.run(command, CLIENT_SECONDS, env=programs.env(**env), cwd=programs.folder)
        except subprocess.TimeoutExpired:
            raise lib.Failed(f"{self.name} took more than {CLIENT_SECONDS} s") from None
        equal(code, 0, f"exit code of {self.name}\n{out[-2000:]}{err[-2000:]}")

    def describe(self):
        code, out, err = lib.run(self.version, 30)
        found = re.search(r"\d+(\.\d+)+", out + err)
        return f"{self.name} {found.group()}" if found else self.name


class Jakarta(Client):
    def send(self, programs, mode, mails, folder):
        jobs = folder / "jobs"
        fields = ("kind", "from", "to", "cc", "bcc", "subject", "text_file", "attachment", "envid")
        words = lambda value: value if isinstance(value, str) else ",".join(value)
        jobs.write_text("".join("\t".join(words(mail[field]) for field in fields) + "\n" for mail in mails))
        self.run(programs, [*self.command(programs.folder, mode), mode, programs.folder / f"spring_{mode}.properties", jobs], {})


class Command(Client):
    """One that sends one message each time it is called, as it is given it."""

    def send(self, programs, mode, mails, folder):
        for mail in mails:
            octets = pathlib.Path(mail["raw"]).read_bytes()
            raw = folder / f"{mail['kind']}.dots"
            # With --no-data-fixup swaks sends the file as it is, so the dots are ours to double and the last one ours to add.
            doubled = re.sub(rb"(?m)^\.", b"..", octets) + b".\r\n" if self.name == "swaks" else octets
            raw.write_bytes(doubled)
            options = "--dsn-notify=failure,delay --dsn-return=headers" if mail["dsn"] else ""
            env = programs.env(FROM=mail["from"], TO=",".join(mail.recipients), RAW=str(raw), RAW_LF=mail["raw_lf"], OPTIONS=options,
                               MSMTPRC=str(programs.folder / "msmtprc"))
            code, out, err = lib.run([*self.command(programs.folder, mode), mode], CLIENT_SECONDS, env=env, cwd=folder)
            if code == 0:
                (folder / f"{mail['kind']}.eml").write_bytes(octets)
            else:
                (folder / f"{mail['kind']}.error").write_text(f"exit {code}: {out[-500:]}{err[-500:]}")


class Sending(lib.Postfix):
    """A Postfix that takes mail on loopback and has the relay as its relayhost."""

    def __init__(self, case, name, programs, *settings):
        super().__init__(case, name)
        with open(self.dir / "etc/main.cf", "a") as main:
            main.write("\nvirtual_mailbox_domains =\nsmtp_host_lookup = native\nsmtp_helo_timeout = 20s\nsmtputf8_enable = yes\n")
            for file in settings:
                main.write((programs.folder / f"postfix_{file}.cf").read_text())
        with open(self.dir / "etc/master.cf", "a") as master:
            master.write("tlsmgr unix - - n 1000? 1 tlsmgr\n")


class PostfixClient(Client):
    """Takes the message by SMTP and sends it on; its `Received:` line comes on top of what it was given."""

    def send(self, programs, mode, mails, folder):
        name = folder.name
        postfix = Sending(programs.case, name, programs, mode).start()
        for mail in mails:
            octets = pathlib.Path(mail["raw"]).read_bytes()
            with smtplib.SMTP("127.0.0.1", postfix.port, "app.example", 60) as smtp:
                smtp.ehlo()
                smtp.command_encoding = "utf-8"
                options = ["BODY=8BITMIME"] * (mail["kind"] in ("8bit", "utf8")) + ["SMTPUTF8"] * (mail["kind"] == "utf8")
                options += ["RET=HDRS", f"ENVID={mail['envid']}"] if mail["dsn"] else []
                equal(smtp.mail(mail["from"], options)[0], 250, "reply of Postfix to MAIL")
                for recipient in mail.recipients:
                    equal(smtp.rcpt(recipient, ["NOTIFY=FAILURE,DELAY"] if mail["dsn"] else [])[0], 250, "reply of Postfix to RCPT")
                equal(smtp.data(octets)[0], 250, "reply of Postfix to the final dot")
        log = programs.case.dir / f"{name}-mail.log"
        everybody = [r for mail in mails for r in mail.recipients]
        lib.wait_until(f"{name} has tried all", 60, lambda: all(f" to=<{r}>" in text for text in [log.read_text()] for r in everybody), 0.1)
        postfix.stop()
        for mail in mails:
            lines = [line for line in log.read_text().splitlines() if any(f"to=<{r}>" in line for r in mail.recipients)]
            sent = [line for line in lines if "status=sent" in line]
            kind = mail["kind"]
            if len(sent) == len(mail.recipients):
                (folder / f"{kind}.eml").write_bytes(pathlib.Path(mail["raw"]).read_bytes())
            else:
                (folder / f"{kind}.error").write_text("\n".join(lines))

    def own_header(self, octets):
        """What was sent, without the line that Postfix has put on top."""
        header, rest = lib.take_header(octets)
        check(header.startswith(b"Received:") and b"(Postfix)" in header, f"no line of Postfix on top of {octets[:300]!r}")
        return rest


def newer_python():
    path = PACKAGES / "python-3.12"
    return path.read_text().strip() if path.is_file() else None


def of_django(python, package):
    """The command that tells the version of this Django."""
    return [python, "-c", f"import sys; sys.path.insert(0, {package!r}); import django; print(django.__version__)"]


def clients():
    """All of them, each with the program that sends, what tells its version, and what it makes of addresses that are not
    ASCII: True, sends them; False, refuses; "encoded", writes them in a way that reaches nobody."""
    jars = "/usr/share/java/jakarta-mail.jar:/usr/share/java/jakarta-activation.jar"

    def java(f, mode):
        trust = [f"-Djavax.net.ssl.trustStore={f / 'trust.p12'}", "-Djavax.net.ssl.trustStorePassword=changeit"]
        return ["java", "-XX:TieredStopAtLevel=1", *trust, "-cp", f"{jars}:{f}", "JakartaMail"]

    perl = ["perl", "-MNet::SMTP", "-e", "print $Net::SMTP::VERSION"]
    found = [
        Client("Python smtplib", lambda f, mode: [sys.executable, f / "python_smtplib.py"], [sys.executable, "--version"]),
        Client("Django", lambda f, mode: [sys.executable, f / "django/send.py"],
               of_django(sys.executable, str(PACKAGES / "Django==5.2.19")),
               utf8="encoded", env=lambda mode: dict(PYTHONPATH=str(PACKAGES / "Django==5.2.19"), DJANGO_SETTINGS_MODULE=mode)),
        Client("Nodemailer", lambda f, mode: ["node", f / "nodemailer.js"],
               ["node", "-p", f"require({str(PACKAGES / 'nodemailer@10.6.0/node_modules/nodemailer/package.json')!r}).version"],
               env=lambda mode: dict(NODE_PATH=str(PACKAGES / "nodemailer@10.6.0/node_modules"))),
        Client("Action Mailer", lambda f, mode: ["ruby", f / "action_mailer.rb"],
               ["ruby", "-e", "require 'action_mailer'; print ActionMailer.version"], utf8=False),
        Client("PHPMailer", lambda f, mode: ["php", "-d", "memory_limit=512M", f / "phpmailer.php"],
               ["dpkg-query", "-W", "-f", "${Version}", "libphp-phpmailer"], utf8=False),
        Client("Symfony Mailer", lambda f, mode: ["php", "-d", "memory_limit=512M", f / "symfony_mailer.php"],
               ["dpkg-query", "-W", "-f", "${Version}", "php-symfony-mailer"], utf8=False),
        Jakarta("Jakarta Mail", java, ["dpkg-query", "-W", "-f", "${Version}", "libjakarta-mail-java"]),
        Client("Go net/smtp", lambda f, mode: [f / "gosmtp"], ["go", "version"]),
        Client("Perl Net::SMTP", lambda f, mode: ["perl", f / "net_smtp.pl"], perl, utf8=False),
        Command("swaks", lambda f, mode: ["sh", f / "swaks.sh"], ["swaks", "--version"], utf8=False),
        Command("curl", lambda f, mode: ["sh", f / "curl.sh"], ["curl", "--version"]),
        Command("msmtp", lambda f, mode: ["sh", f / "msmtp.sh"], ["msmtp", "--version"], utf8=False),
        PostfixClient("Postfix", None, ["postconf", "-d", "mail_version"]),
    ]
    if python := newer_python():
        path = str(PACKAGES / "Django==6.1.3")
        found.insert(2, Client("Django MAILERS", lambda f, mode: [python, f / "django/send.py"],
                               of_django(python, path), utf8=False,
                               env=lambda mode: dict(PYTHONPATH=path, DJANGO_SETTINGS_MODULE=f"mailers_{mode}")))
    return found


def build(programs):
    """What must be compiled, and the authorities in the form that Java wants."""
    f = programs.folder
    env = dict(os.environ, GOCACHE=str(programs.case.dir / "go-cache"), GO111MODULE="off", HOME=str(programs.case.dir))
    for command in (["go", "build", "-o", "gosmtp", "gosmtp.go"],
                    ["javac", "-cp", "/usr/share/java/jakarta-mail.jar", "JakartaMail.java"],
                    ["keytool", "-importcert", "-noprompt", "-alias", "mailramp", "-file", programs.ca, "-keystore", "trust.p12",
                     "-storetype", "PKCS12", "-storepass", "changeit"]):
        code, out, err = lib.run(command, 120, cwd=f, env=env)
        equal(code, 0, f"exit code of {command[0]}\n{out}{err}")
