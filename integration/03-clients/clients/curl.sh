# curl. Argument: mode. FROM, TO (with commas) and RAW say what is sent.
mode=$1
set --
for recipient in $(echo "$TO" | tr ',' ' '); do set -- "$@" --mail-rcpt "$recipient"; done
case $mode in
plain)
    exec curl -sS smtp://127.0.0.1:2525/app.example --mail-from "$FROM" "$@" --upload-file "$RAW"
    ;;
starttls)
    exec curl -sS smtp://relay.example.com:587/app.example --ssl-reqd --cacert /etc/ssl/mailramp-ca.pem \
        --user "app:$MAIL_PASSWORD" --mail-from "$FROM" "$@" --upload-file "$RAW"
    ;;
implicit)
    exec curl -sS smtps://relay.example.com:465/app.example --cacert /etc/ssl/mailramp-ca.pem \
        --user "app:$MAIL_PASSWORD" --mail-from "$FROM" "$@" --upload-file "$RAW"
    ;;
esac
