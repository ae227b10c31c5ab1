"""Python's smtplib. Arguments: mode, job file (../run says what is in it)."""

import email.generator
import email.message
import email.policy
import email.utils
import io
import json
import os
import pathlib
import smtplib
import ssl
import sys

mode, job = sys.argv[1], json.loads(pathlib.Path(sys.argv[2]).read_text())


def connect():
    if mode == "plain":
        smtp = smtplib.SMTP("127.0.0.1", 2525, timeout=30)
    elif mode == "starttls":
        smtp = smtplib.SMTP("relay.example.com", 587, timeout=30)
        smtp.starttls(context=ssl.create_default_context(cafile="/etc/ssl/mailramp-ca.pem"))
        smtp.login("app", os.environ["MAIL_PASSWORD"])
    else:
        context = ssl.create_default_context(cafile="/etc/ssl/mailramp-ca.pem")
        smtp = smtplib.SMTP_SSL("relay.example.com", 465, timeout=30, context=context)
        smtp.login("app", os.environ["MAIL_PASSWORD"])
    return smtp


def message(mail):
    built = email.message.EmailMessage(policy=email.policy.SMTPUTF8 if mail["kind"] == "utf8" else email.policy.SMTP)
    built["From"], built["To"], built["Subject"] = mail["from"], ", ".join(mail["to"]), mail["subject"]
    built["Date"], built["Message-ID"] = email.utils.formatdate(), email.utils.make_msgid(domain="app.example")
    if mail["cc"]:
        built["Cc"] = ", ".join(mail["cc"])
    built.set_content(mail["text"], cte="8bit" if mail["kind"] == "8bit" else None)
    if mail["attachment"]:
        octets = pathlib.Path(mail["attachment"]).read_bytes()
        built.add_attachment(octets, maintype="application", subtype="octet-stream", filename="report.bin")
        built.set_boundary("=-=-=")  # or each rendering has another
    return built


for mail in job["mails"]:
    kept = pathlib.Path(job["folder"], mail["kind"])
    try:
        built = message(mail)
        options = ["BODY=8BITMIME"] if mail["kind"] == "8bit" else []
        dsn = ["RET=HDRS", f"ENVID={mail['envid']}"] if mail["dsn"] else []
        with connect() as smtp:
            refused = smtp.send_message(built, mail["from"], mail["to"] + mail["cc"] + mail["bcc"], options + dsn,
                                        ["NOTIFY=FAILURE,DELAY"] if dsn else [])
        assert not refused, refused
        # The same call as in send_message, which writes ">From" where a line begins with "From".
        octets = io.BytesIO()
        policy = {"policy": built.policy.clone(utf8=True)} if mail["kind"] == "utf8" else {}
        email.generator.BytesGenerator(octets, **policy).flatten(built, linesep="\r\n")
        kept.with_suffix(".eml").write_bytes(octets.getvalue())
    except Exception as error:
        kept.with_suffix(".error").write_text(repr(error))
