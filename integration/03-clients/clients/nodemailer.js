// Nodemailer. Arguments: mode, job file.
const fs = require("fs");
const path = require("path");
const nodemailer = require("nodemailer");

const [mode, jobFile] = process.argv.slice(2);
const job = JSON.parse(fs.readFileSync(jobFile));

const transports = {
  plain: () =>
    nodemailer.createTransport({ host: "127.0.0.1", port: 2525, secure: false, ignoreTLS: true }),
  starttls: () =>
    nodemailer.createTransport({
      host: "relay.example.com",
      port: 587,
      secure: false,
      requireTLS: true,
      auth: { user: "app", pass: process.env.MAIL_PASSWORD },
      tls: { ca: fs.readFileSync("/etc/ssl/mailramp-ca.pem") },
    }),
  implicit: () =>
    nodemailer.createTransport({
      host: "relay.example.com",
      port: 465,
      secure: true,
      auth: { user: "app", pass: process.env.MAIL_PASSWORD },
      tls: { ca: fs.readFileSync("/etc/ssl/mailramp-ca.pem") },
    }),
};

function message(mail) {
  const built = {
    from: mail.from, to: mail.to, cc: mail.cc, bcc: mail.bcc, subject: mail.subject, text: mail.text,
    date: new Date(), messageId: `<${mail.kind}.${Date.now()}@app.example>`, baseBoundary: `b${Date.now()}`,
  };
  if (mail.attachment) built.attachments = [{ filename: "report.bin", path: mail.attachment }];
  if (mail.dsn) built.dsn = { id: mail.envid, return: "headers", notify: ["failure", "delay"] };
  // Nodemailer itself writes quoted-printable or base64; 8-bit octets only as a message made elsewhere.
  if (mail.kind === "8bit") {
    built.raw = fs.readFileSync(mail.raw);
    built.envelope = { from: mail.from, to: mail.to, use8BitMime: true };
  }
  return built;
}

(async () => {
  const transport = transports[mode]();
  const renderer = nodemailer.createTransport({ streamTransport: true, buffer: true, newline: "windows" });
  for (const mail of job.mails) {
    const kept = path.join(job.folder, mail.kind);
    try {
      const built = message(mail);
      const info = await transport.sendMail(built);
      if (info.rejected.length) throw new Error(`rejected: ${info.rejected}`);
      fs.writeFileSync(`${kept}.eml`, (await renderer.sendMail({ ...built, bcc: [] })).message);
    } catch (error) {
      fs.writeFileSync(`${kept}.error`, String(error));
    }
  }
  transport.close();
})();
