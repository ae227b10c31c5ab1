import os

MAILERS = {
    "default": {
        "BACKEND": "django.core.mail.backends.smtp.EmailBackend",
        "OPTIONS": {
            "host": "relay.example.com",
            "port": 587,
            "use_tls": True,
            "username": "app",
            "password": os.environ["MAIL_PASSWORD"],
            "timeout": 10,
        },
    },
}
