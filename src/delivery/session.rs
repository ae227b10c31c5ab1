//! One stream to a next hop: octets out with an exact count, replies in one by one, everything under a deadline.
//!
//! Knows no commands. A deadline covers a whole reply or a whole write, so a peer that drips gains nothing.

use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use mail_send::SmtpClient;
use smtp_proto::{AUTH_CRAM_MD5, AUTH_LOGIN, AUTH_PLAIN, EhloResponse};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::outcome::{Cause, Fault};
use super::wire::{BadReply, RawReply, ReplyReader, printable};
use crate::reply::{EnhancedCode, Reply};

const READ_OCTETS: usize = 4096;

/// In clear or inside TLS.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A write that failed, and how many octets the stream had taken by then.
#[derive(Debug)]
pub struct WriteFault {
    pub fault: Fault,
    pub taken: usize,
}

pub struct Session {
    stream: Stream,
    replies: ReplyReader,
}

impl Session {
    pub fn new(stream: Stream) -> Self {
        Session { stream, replies: ReplyReader::default() }
    }

    pub fn is_tls(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    /// Octets are here that no command has asked for.
    pub fn has_surplus(&self) -> bool {
        !self.replies.is_empty()
    }

    /// The next reply, whole, within `limit`.
    pub async fn reply(&mut self, limit: Duration) -> Result<RawReply, Fault> {
        timeout(limit, self.read_reply()).await.unwrap_or(Err(Fault::TimedOut))
    }

    async fn read_reply(&mut self) -> Result<RawReply, Fault> {
        loop {
            if let Some(reply) = self.replies.next_reply().map_err(|BadReply(why)| Fault::BadReply(why))? {
                return Ok(reply);
            }
            let mut buffer = [0; READ_OCTETS];
            let read = self.stream.read(&mut buffer).await.map_err(io_fault)?;
            if read == 0 {
                return Err(Fault::Closed);
            }
            self.replies.push(&buffer[..read]);
        }
    }

    /// Looks, without waiting, for octets nobody asked for or the end of the stream.
    pub async fn is_disturbed(&mut self) -> Result<bool, Fault> {
        if self.has_surplus() {
            return Ok(true);
        }
        let mut octets = [0; READ_OCTETS];
        let mut buffer = ReadBuf::new(&mut octets);
        let looked = poll_fn(|cx| Poll::Ready(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))).await;
        match looked {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(e)) => Err(io_fault(e)),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Err(Fault::Closed),
            Poll::Ready(Ok(())) => {
                self.replies.push(buffer.filled());
                Ok(true)
            }
        }
    }

    /// Writes all of `parts`, in one call where the stream can, within `limit`.
    pub async fn write(&mut self, parts: &[&[u8]], limit: Duration) -> Result<(), WriteFault> {
        let mut taken = 0;
        let result = timeout(limit, write_all(&mut self.stream, parts, &mut taken)).await;
        match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(WriteFault { fault: io_fault(e), taken }),
            Err(_) => Err(WriteFault { fault: Fault::TimedOut, taken }),
        }
    }

    /// Writes a command and reads its reply.
    pub async fn command(&mut self, command: &[u8], limit: Duration) -> Result<RawReply, Fault> {
        self.write(&[command], limit).await.map_err(|e| e.fault)?;
        self.reply(limit).await
    }

    /// Goes on inside TLS. A session that holds octets from the clear part is refused: they were injected.
    pub async fn into_tls(self, connector: &TlsConnector, host: &str, limit: Duration) -> Result<Session, Fault> {
        if self.has_surplus() {
            return Err(Fault::ResponseInjection);
        }
        let Stream::Plain(stream) = self.stream else {
            return Err(Fault::Tls("already on".into()));
        };
        let client = SmtpClient { stream, timeout: limit };
        let client = client.into_tls(connector, host).await.map_err(tls_fault)?;
        Ok(Session::new(Stream::Tls(Box::new(client.stream))))
    }

    /// Logs in by the best of PLAIN, LOGIN and CRAM-MD5 that is offered.
    pub async fn authenticate(
        self,
        user: &str,
        password: &str,
        mechanisms: &[String],
        limit: Duration,
    ) -> Result<Session, Cause> {
        if self.has_surplus() {
            return Err(Cause::Fault(Fault::BadReply("octets nobody asked for")));
        }
        let offered = mechanisms.iter().fold(0, |all, name| {
            all | match name.as_str() {
                "PLAIN" => AUTH_PLAIN,
                "LOGIN" => AUTH_LOGIN,
                "CRAM-MD5" => AUTH_CRAM_MD5,
                _ => 0,
            }
        });
        let capabilities: EhloResponse<String> = EhloResponse { auth_mechanisms: offered, ..EhloResponse::default() };
        let credentials = mail_send::Credentials::Plain { username: user, secret: password };
        let mut client = SmtpClient { stream: self.stream, timeout: limit };
        client.authenticate(&credentials, &capabilities).await.map_err(login_cause)?;
        Ok(Session::new(client.stream))
    }

    /// Says goodbye; what becomes of it does not matter.
    pub async fn quit(mut self, limit: Duration) {
        let _ = self.command(b"QUIT\r\n", limit).await;
        let _ = timeout(limit, self.stream.shutdown()).await;
    }
}

/// `taken` counts what the stream has accepted, also when this future is dropped or fails.
async fn write_all(stream: &mut Stream, parts: &[&[u8]], taken: &mut usize) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = slices.as_mut_slice();
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let written = stream.write_vectored(rest).await?;
        if written == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        *taken += written;
        IoSlice::advance_slices(&mut rest, written);
    }
    stream.flush().await
}

pub(super) fn io_fault(error: io::Error) -> Fault {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Fault::Closed,
        ErrorKind::TimedOut => Fault::TimedOut,
        kind => Fault::Io(kind),
    }
}

/// What the connection layer says when TCP does not come about.
pub(super) fn connect_fault(error: mail_send::Error) -> Fault {
    match error {
        mail_send::Error::Io(e) => match e.kind() {
            ErrorKind::TimedOut => Fault::TimedOut,
            kind => Fault::Io(kind),
        },
        mail_send::Error::Timeout => Fault::TimedOut,
        other => Fault::Tls(other.to_string()),
    }
}

fn tls_fault(error: mail_send::Error) -> Fault {
    match error {
        mail_send::Error::Timeout => Fault::Tls("handshake timed out".into()),
        other => Fault::Tls(printable(other.to_string().as_bytes())),
    }
}

fn login_cause(error: mail_send::Error) -> Cause {
    use mail_send::Error;
    match error {
        Error::AuthenticationFailed(reply) | Error::UnexpectedReply(reply) => {
            let [class, subject, detail] = reply.esc;
            let enhanced =
                matches!(class, 2 | 4 | 5).then(|| EnhancedCode(class, u16::from(subject), u16::from(detail)));
            let lines = reply.message.split('\n').map(|line| line.as_bytes().to_vec()).collect();
            let raw = RawReply { code: reply.code, lines };
            Cause::Reply(Reply { enhanced, ..raw.to_reply() })
        }
        Error::Io(e) => Cause::Fault(io_fault(e)),
        Error::Timeout => Cause::Fault(Fault::TimedOut),
        Error::UnsupportedAuthMechanism => Cause::Fault(Fault::Login("no mechanism offered that we know")),
        Error::Auth(_) | Error::Base64(_) => Cause::Fault(Fault::Login("challenge makes no sense")),
        _ => Cause::Fault(Fault::BadReply("not a reply code")),
    }
}
