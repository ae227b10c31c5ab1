# msmtp. Argument: mode, an account of msmtprc. FROM, TO (with commas), RAW_LF and OPTIONS say what is sent.
exec msmtp --file "$MSMTPRC" --account "$1" --from "$FROM" $OPTIONS -- $(echo "$TO" | tr ',' ' ') <"$RAW_LF"
