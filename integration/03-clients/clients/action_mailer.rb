# Rails' Action Mailer. Arguments: mode, job file.
require "action_mailer"
require "json"

mode, job = ARGV[0], JSON.parse(File.read(ARGV[1]))

config = Struct.new(:action_mailer).new(ActionMailer::Base)
case mode
when "plain"
  config.action_mailer.smtp_settings = {
    address: "127.0.0.1", port: 2525, enable_starttls: false, enable_starttls_auto: false
  }
when "starttls"
  config.action_mailer.smtp_settings = {
    address: "relay.example.com", port: 587, enable_starttls: true,
    user_name: "app", password: ENV["MAIL_PASSWORD"], authentication: :plain,
    ca_file: "/etc/ssl/mailramp-ca.pem", open_timeout: 10, read_timeout: 30
  }
else
  config.action_mailer.smtp_settings = {
    address: "relay.example.com", port: 465, tls: true,
    user_name: "app", password: ENV["MAIL_PASSWORD"], authentication: :plain,
    ca_file: "/etc/ssl/mailramp-ca.pem", open_timeout: 10, read_timeout: 30
  }
end
ActionMailer::Base.logger = nil

class Billing < ActionMailer::Base
  def notice(message)
    large = message["kind"] == "large"
    attachments["report.bin"] = File.binread(message["attachment"]) if large
    made = mail(from: message["from"], to: message["to"], cc: message["cc"], bcc: message["bcc"], subject: message["subject"],
                body: message["text"], content_type: large ? nil : "text/plain; charset=utf-8")
    # Left alone it writes base64 or quoted-printable for every server.
    made.transport_encoding = "8bit" if message["kind"] == "8bit"
  end
end

job["mails"].each do |mail|
  kept = File.join(job["folder"], mail["kind"])
  begin
    sent = Billing.notice(mail).deliver_now
    # The mail gem up to 2.7 doubles a dot that is alone in its line, and Net::SMTP does so again.
    File.binwrite("#{kept}.eml", sent.encoded.gsub(/^\.\r\n/, "..\r\n"))
  rescue StandardError => error
    File.write("#{kept}.error", "#{error.class}: #{error.message}")
  end
end
