import os

MAILERS = {
    "default": {
        "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "OPTIONS": {
            "host": "relay.example.com",
            "port": 465,
            "use_ssl": True,
            "username": "app",
            "password": os.environ["MAIL_PASSWORD"],
            "timeout": 10,
        },
    },
}
