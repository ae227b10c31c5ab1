//! An application that sends mail: one connection, one message at a time, every reply checked.
#![allow(dead_code)] // each test binary uses its part

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No reply takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a reply that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(150);

pub struct Application(TcpStream);

impl Application {
    pub fn connect(relay: SocketAddr) -> Application {
        Application::over(TcpStream::connect(relay).expect("listens"))
    }

    /// Over a connection of the caller's.
    pub fn over(stream: TcpStream) -> Application {
        stream.set_read_timeout(Some(PATIENCE)).expect("can be set");
        stream.set_nodelay(true).expect("can be set");
        let mut application = Application(stream);
        application.hear("220 ");
        application.say("EHLO app.example\r\n", "250 ");
        application
    }

    pub fn say(&mut self, text: &str, expected: &str) -> String {
        self.write(text.as_bytes());
        self.hear(expected)
    }

    pub fn write(&mut self, octets: &[u8]) {
        self.0.write_all(octets).expect("reads us");
    }

    /// Reads one reply, which must begin with `expected`; returns its last line.
    pub fn hear(&mut self, expected: &str) -> String {
        let mut line = Vec::new();
        loop {
            let mut octet = [0];
            self.0.read_exact(&mut octet).expect("a reply");
            line.push(octet[0]);
            if octet == *b"\n" {
                let text = String::from_utf8_lossy(&line).into_owned();
                if text.starts_with(expected) {
                    return text;
                }
                let more = text.as_bytes().get(3) == Some(&b'-') && text.get(..3) == expected.get(..3);
                assert!(more, "{expected} was expected, not {text}");
                line.clear();
            }
        }
    }

    /// Reads one reply, whatever it is; its lines without their ends.
    pub fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                let mut octet = [0];
                self.0.read_exact(&mut octet).expect("a reply");
                line.push(octet[0]);
            }
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            let is_last = text.as_bytes().get(3) != Some(&b'-');
            lines.push(text);
            if is_last {
                return lines;
            }
        }
    }

    /// An envelope and a body, dots doubled, up to and with the final dot.
    pub fn offer(&mut self, from: &str, recipients: &[&str], body: &[u8]) {
        let eight_bit = if body.is_ascii() { "" } else { " BODY=8BITMIME" };
        self.say(&format!("MAIL FROM:<{from}>{eight_bit}\r\n"), "250 ");
        for recipient in recipients {
            self.say(&format!("RCPT TO:<{recipient}>\r\n"), "250 ");
        }
        self.say("DATA\r\n", "354 ");
        let mut octets = Vec::with_capacity(body.len() + body.len() / 16 + 3);
        for line in body.split_inclusive(|octet| *octet == b'\n') {
            if line.first() == Some(&b'.') {
                octets.push(b'.');
            }
            octets.extend_from_slice(line);
        }
        octets.extend_from_slice(b".\r\n");
        self.write(&octets);
    }

    /// Hands a message over; returns the queue id of the 250.
    pub fn send(&mut self, from: &str, recipients: &[&str], body: &[u8]) -> String {
        self.offer(from, recipients, body);
        let reply = self.hear("250 2.0.0 Queued as ");
        reply.trim_end().rsplit(' ').next().expect("an id").to_owned()
    }

    pub fn hears_nothing(&mut self) {
        self.0.set_read_timeout(Some(SILENCE)).expect("can be set");
        let error = self.0.read(&mut [0]).expect_err("a reply came before its time");
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        self.0.set_read_timeout(Some(PATIENCE)).expect("can be set");
    }
}
