# swaks. Argument: mode. FROM, TO (with commas) and RAW say what is sent.
case $1 in
plain)
    set -- --server 127.0.0.1 --port 2525
    ;;
starttls)
    set -- --server relay.example.com --port 587 --tls --tls-verify --tls-ca-path /etc/ssl/mailramp-ca.pem \
        --auth PLAIN --auth-user app --auth-password "$MAIL_PASSWORD"
    ;;
implicit)
    set -- --server relay.example.com --port 465 --tls-on-connect --tls-verify --tls-ca-path /etc/ssl/mailramp-ca.pem \
        --auth PLAIN --auth-user app --auth-password "$MAIL_PASSWORD"
    ;;
esac
exec swaks "$@" --helo app.example --from "$FROM" --to "$TO" --data "@$RAW" --no-data-fixup --suppress-data
