//! A small SMTP client, as an application has one: EHLO, pipelined envelopes, one message after the other.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::application::Mail;

/// Longest wait for the answers to one message. Applications give up about then.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest line of a reply: RFC 5321 §4.5.3.1.5 has 512.
const LINE_MAX: usize = 2_000;

/// An open connection to the relay.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub async fn connect(relay: SocketAddr) -> io::Result<Client> {
        let connecting = async {
            let stream = TcpStream::connect(relay).await?;
            stream.set_nodelay(true)?;
            let mut client = Client { stream: BufReader::new(stream) };
            client.reply("220").await?;
            client.write("EHLO app.example\r\n").await?;
            client.reply("250").await?;
            Ok(client)
        };
        timeout(PATIENCE, connecting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// `Ok`: the relay has said 250 to the message and to each of its recipients. After an error the connection is gone.
    pub async fn send(mut self, mail: &Mail) -> io::Result<Client> {
        let mut envelope = String::from("MAIL FROM:<shop@app.example>\r\n");
        for recipient in 0..mail.recipients {
            envelope.push_str(&format!("RCPT TO:<{}>\r\n", mail.letter(recipient).address()));
        }
        envelope.push_str("DATA\r\n");
        let sending = async {
            self.write(&envelope).await?;
            for _ in 0..=mail.recipients {
                self.reply("250").await?;
            }
            self.reply("354").await?;
            self.write(&(mail.text() + ".\r\n")).await?;
            self.reply("250").await?;
            Ok(self)
        };
        timeout(PATIENCE, sending).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    pub async fn quit(mut self) {
        let _ = timeout(PATIENCE, async {
            self.write("QUIT\r\n").await?;
            self.reply("221").await
        })
        .await;
    }

    async fn write(&mut self, text: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(text.as_bytes()).await
    }

    /// Reads one reply, of however many lines; an error that quotes it when it is another one.
    async fn reply(&mut self, code: &str) -> io::Result<()> {
        loop {
            let mut line = String::new();
            (&mut self.stream).take(LINE_MAX as u64).read_line(&mut line).await?;
            if !line.ends_with('\n') {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !line.starts_with(code) {
                return Err(io::Error::other(format!("the relay said {}", line.trim_end())));
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(());
            }
        }
    }
}
