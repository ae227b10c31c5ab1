"""Django, with the settings module that DJANGO_SETTINGS_MODULE names. Arguments: mode, job file."""

import json
import pathlib
import sys

import django
from django.core.mail import EmailMessage

django.setup()
job = json.loads(pathlib.Path(sys.argv[2]).read_text())


class Kept(EmailMessage):
    """Made once: each call of `message()` would invent another date, id and boundary."""

    made = None

    def message(self, *words, **named):
        self.made = self.made or super().message(*words, **named)
        return self.made


for mail in job["mails"]:
    kept = pathlib.Path(job["folder"], mail["kind"])
    try:
        message = Kept(mail["subject"], mail["text"], mail["from"], mail["to"], mail["bcc"], cc=mail["cc"])
        if mail["attachment"]:
            message.attach("report.bin", pathlib.Path(mail["attachment"]).read_bytes(), "application/octet-stream")
        assert message.send() == 1
        kept.with_suffix(".eml").write_bytes(message.made.as_bytes())
    except Exception as error:
        kept.with_suffix(".error").write_text(repr(error))
