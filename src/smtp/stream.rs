//! The octets of one connection, in clear or through TLS: read once, written once, closed in order.
//!
//! Promises: while it waits for input it holds no buffer of ours; what was read belongs to the reader and to nobody
//! else, so that it ends with it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

/// How we talk to the client. The state of TLS is boxed, so that connections in clear do not pay for it.
pub(super) enum Stream {
    Plain(Plain),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection in clear: a socket, and by type nothing else. Octets that were read from it are [`Input`], which has no
/// way back in here.
pub(super) struct Plain(TcpStream);

/// What one read has brought. Empty: the client has closed.
pub(super) struct Input {
    buffer: Box<[u8]>,
    filled: usize,
}

impl Stream {
    pub fn new(socket: TcpStream) -> Stream {
        Stream::Plain(Plain(socket))
    }

    /// Waits for input. May be dropped while it waits; nothing is lost.
    pub async fn read(&mut self) -> io::Result<Input> {
        match self {
            Stream::Plain(plain) => plain.read().await,
            Stream::Tls(tls) => poll_fn(|cx| poll_tls_read(tls, cx)).await,
        }
    }

    /// Sends all of it, in one write if the socket takes it; `patience` is for each time that it does not.
    pub async fn write(&mut self, octets: &[u8], patience: Duration) -> io::Result<()> {
        match self {
            Stream::Plain(plain) => plain.write(octets, patience).await,
            Stream::Tls(tls) => {
                let mut sending = Sending { tls, rest: octets };
                if let Poll::Ready(sent) = poll_fn(|cx| Poll::Ready(sending.poll(cx))).await {
                    return sent;
                }
                while Box::pin(timeout(patience, sending.progress())).await?? == Progress::Some {}
                Ok(())
            }
        }
    }

    /// Closes so that the client gets to read our last reply: input that is still on its way when a socket is closed
    /// makes the kernel reset the connection, and the reply is lost.
    pub async fn close(self) {
        let drain = async {
            let mut socket = match self {
                Stream::Plain(Plain(socket)) => socket,
                Stream::Tls(mut tls) => {
                    tls.shutdown().await?; // close_notify, then the end of what we send
                    tls.into_inner().0
                }
            };
            socket.shutdown().await?;
            let mut input = Input::take();
            let mut drained = 0;
            while drained < LINGER_MAX_OCTETS {
                socket.readable().await?;
                match socket.try_read(&mut input.buffer) {
                    Ok(0) => break,
                    Ok(octets) => drained += octets,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        // Whether the client went away in order or not, we are done with it.
        let _: Result<io::Result<()>, _> = timeout(LINGER, drain).await;
    }

    /// The client has closed: says the same, as TLS wants it (RFC 8446 §6.1).
    pub async fn leave(self) {
        if let Stream::Tls(mut tls) = self {
            let _ = timeout(LINGER, tls.shutdown()).await;
        }
    }
}

impl Plain {
    /// The socket, for a handshake.
    pub fn into_socket(self) -> TcpStream {
        self.0
    }

    async fn read(&self) -> io::Result<Input> {
        loop {
            self.0.readable().await?;
            let mut input = Input::take();
            match read_drained(&self.0, &mut input.buffer) {
                Ok(octets) => {
                    input.filled = octets;
                    return Ok(input);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn write(&self, octets: &[u8], patience: Duration) -> io::Result<()> {
        let mut rest = octets;
        while !rest.is_empty() {
            match self.0.try_write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    timeout(patience, self.0.writable()).await??;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Reads once. A read that does not fill the buffer has drained the socket: the runtime is told so at once, which saves
/// the second read that would only find it empty.
fn read_drained(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut octets = None;
    let size = buffer.len();
    let done = stream.try_io(Interest::READABLE, || {
        let read = (&*SockRef::from(stream)).read(buffer)?;
        octets = Some(read);
        if read > 0 && read < size { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match (octets, done) {
        (Some(octets), _) => Ok(octets),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// A buffer is taken for each look and given back when there is nothing, so that waiting holds none.
fn poll_tls_read(tls: &mut TlsStream<TcpStream>, cx: &mut Context<'_>) -> Poll<io::Result<Input>> {
    let mut input = Input::take();
    let mut target = ReadBuf::new(&mut input.buffer);
    ready!(Pin::new(tls).poll_read(cx, &mut target))?;
    input.filled = target.filled().len();
    Poll::Ready(Ok(input))
}

/// Replies on their way through TLS.
struct Sending<'a> {
    tls: &'a mut TlsStream<TcpStream>,
    rest: &'a [u8],
}

#[derive(PartialEq)]
enum Progress {
    Some,
    Done,
}

impl Sending<'_> {
    /// Ready when all is with the kernel.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let taken = ready!(Pin::new(&mut *self.tls).poll_write(cx, self.rest))?;
            self.rest = &self.rest[taken..];
        }
        Pin::new(&mut *self.tls).poll_flush(cx)
    }

    /// Until TLS has taken more of it, or the kernel has taken all.
    async fn progress(&mut self) -> io::Result<Progress> {
        let before = self.rest.len();
        poll_fn(|cx| match self.poll(cx)? {
            Poll::Ready(()) => Poll::Ready(Ok(Progress::Done)),
            Poll::Pending if self.rest.len() < before => Poll::Ready(Ok(Progress::Some)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }
}

impl Input {
    /// A buffer; from this thread's few spare ones, which need no clearing.
    fn take() -> Input {
        let buffer = BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; READ_BUFFER_OCTETS].into());
        Input { buffer, filled: 0 }
    }

    pub fn octets(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // A thread that is ending has no spare ones any more.
        let _ = BUFFERS.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < BUFFERS_SPARE_PER_THREAD {
                spare.push(buffer);
            }
        });
    }
}

thread_local! {
    static BUFFERS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

const READ_BUFFER_OCTETS: usize = 16 * 1024; // the plaintext of one TLS record
const BUFFERS_SPARE_PER_THREAD: usize = 16;
const LINGER: Duration = Duration::from_secs(1);
const LINGER_MAX_OCTETS: usize = 1024 * 1024;
