import jakarta.mail.*;
import jakarta.mail.internet.*;
import java.io.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;

/**
 * Jakarta Mail with the settings of a Spring Boot application. Arguments: mode, settings, file of jobs (one mail a line,
 * fields separated by tabs: kind, from, to, cc, bcc, subject, text file, attachment, envid).
 */
public class JakartaMail {
    /** What Spring Boot makes of `spring.mail.*`: everything below `properties` is handed on as it is. */
    static Properties session(Properties settings) {
        Properties made = new Properties();
        made.put("mail.transport.protocol", "smtp");
        made.put("mail.smtp.host", settings.getProperty("spring.mail.host"));
        made.put("mail.smtp.port", settings.getProperty("spring.mail.port"));
        for (String name : settings.stringPropertyNames())
            if (name.startsWith("spring.mail.properties."))
                made.put(name.substring("spring.mail.properties.".length()), settings.getProperty(name));
        return made;
    }

    static InternetAddress[] addresses(String list) throws AddressException {
        return list.isEmpty() ? new InternetAddress[0] : InternetAddress.parse(list);
    }

    static void send(Properties settings, String[] f, Path kept) throws Exception {
        Properties properties = session(settings);
        if (f[0].equals("8bit")) properties.put("mail.smtp.allow8bitmime", "true");
        if (f[0].equals("utf8")) properties.put("mail.mime.allowutf8", "true");
        if (f[0].equals("large")) properties.put("mail.smtp.chunksize", "1000000"); // BDAT, where it is offered
        if (!f[8].isEmpty()) {
            properties.put("mail.smtp.dsn.notify", "FAILURE,DELAY");
            properties.put("mail.smtp.dsn.ret", "HDRS");
        }
        Session session = Session.getInstance(properties);
        MimeMessage message = new MimeMessage(session);
        message.setFrom(new InternetAddress(f[1]));
        message.setRecipients(Message.RecipientType.TO, addresses(f[2]));
        message.setRecipients(Message.RecipientType.CC, addresses(f[3]));
        message.setRecipients(Message.RecipientType.BCC, addresses(f[4]));
        message.setSubject(f[5], "utf-8");
        message.setSentDate(new Date());
        String text = Files.readString(Path.of(f[6]));
        if (f[7].isEmpty()) {
            message.setText(text, "utf-8");
        } else {
            MimeBodyPart body = new MimeBodyPart(), attachment = new MimeBodyPart();
            body.setText(text, "utf-8");
            attachment.attachFile(f[7]);
            message.setContent(new MimeMultipart(body, attachment));
        }
        message.saveChanges();
        try (Transport transport = session.getTransport("smtp")) {
            transport.connect(settings.getProperty("spring.mail.username"), System.getenv("MAIL_PASSWORD"));
            transport.sendMessage(message, message.getAllRecipients());
        }
        ByteArrayOutputStream octets = new ByteArrayOutputStream();
        message.writeTo(octets, new String[] {"Bcc", "Content-Length"}); // as the transport leaves them out
        String sent = octets.toString(StandardCharsets.ISO_8859_1);
        // It doubles leading dots in chunks too, where no server takes the second one away again (RFC 3030 §2).
        if (f[0].equals("large")) sent = sent.replaceAll("(?m)^\\.", "..");
        Files.write(Path.of(kept + ".eml"), sent.getBytes(StandardCharsets.ISO_8859_1));
    }

    public static void main(String[] words) throws Exception {
        Properties settings = new Properties();
        try (Reader reader = Files.newBufferedReader(Path.of(words[1]))) {
            settings.load(reader);
        }
        Path jobs = Path.of(words[2]);
        for (String line : Files.readAllLines(jobs, StandardCharsets.UTF_8)) {
            String[] fields = line.split("\t", -1);
            Path kept = jobs.resolveSibling(fields[0]);
            try {
                send(settings, fields, kept);
            } catch (Exception error) {
                Files.writeString(Path.of(kept + ".error"), error.toString());
            }
        }
    }
}
