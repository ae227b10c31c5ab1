// Go's net/smtp. Arguments: mode, job file.
package main

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/smtp"
	"os"
	"path/filepath"
)

type job struct {
	Folder string
	Mails  []struct {
		Kind, From, Raw string
		To, Cc, Bcc     []string
	}
}

func send(mode, from string, to []string, message []byte) error {
	switch mode {
	case "plain":
		return smtp.SendMail("127.0.0.1:2525", nil, from, to, message)
	case "starttls":
		auth := smtp.PlainAuth("", "app", os.Getenv("MAIL_PASSWORD"), "relay.example.com")
		return smtp.SendMail("relay.example.com:587", auth, from, to, message)
	}
	conn, err := tls.Dial("tcp", "relay.example.com:465", nil)
	if err != nil {
		return err
	}
	client, err := smtp.NewClient(conn, "relay.example.com")
	if err != nil {
		return err
	}
	defer client.Close()
	if err := client.Auth(smtp.PlainAuth("", "app", os.Getenv("MAIL_PASSWORD"), "relay.example.com")); err != nil {
		return err
	}
	if err := client.Mail(from); err != nil {
		return err
	}
	for _, recipient := range to {
		if err := client.Rcpt(recipient); err != nil {
			return err
		}
	}
	body, err := client.Data()
	if err != nil {
		return err
	}
	if _, err := body.Write(message); err != nil {
		return err
	}
	if err := body.Close(); err != nil {
		return err
	}
	return client.Quit()
}

func main() {
	var work job
	text, err := os.ReadFile(os.Args[2])
	if err == nil {
		err = json.Unmarshal(text, &work)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, mail := range work.Mails {
		kept := filepath.Join(work.Folder, mail.Kind)
		message, err := os.ReadFile(mail.Raw)
		if err == nil {
			err = send(os.Args[1], mail.From, append(append(mail.To, mail.Cc...), mail.Bcc...), message)
		}
		if err == nil {
			err = os.WriteFile(kept+".eml", message, 0o600)
		}
		if err != nil {
			os.WriteFile(kept+".error", []byte(err.Error()), 0o600)
		}
	}
}
