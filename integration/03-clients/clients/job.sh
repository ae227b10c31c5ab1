# A cron job that hands its mail to sendmail. Argument: Postfix's folder of settings.
digest_report() { printf 'To: you@example.net\nSubject: digest\n\nNothing new.\n'; }
MAIL_CONFIG=$1 && export MAIL_CONFIG
digest_report | sendmail -f digest@app.example -t
