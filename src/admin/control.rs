//! The socket by which commands of the same machine reach the running relay: `data_dir/control.sock`.
//!
//! One JSON request per line, one JSON answer per line, as many as wanted, in order. Who may: the user the relay runs as
//! and root, by what the kernel says of the peer; the file's mode 0600 says the same to everybody else. Requests,
//! connections and waits are bounded on both sides.

use std::fs;
use std::future::Future;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as ClientStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::api::{Answer, ChangeOrder, Command, Request, Response, VERSION};
use super::warmup::checked_reason;
use super::{Backend, BackendError};

const REQUEST_MAX_BYTES: u64 = 64 * 1024;
const ANSWER_MAX_BYTES: u64 = 64 * 1024 * 1024;
const CONNECTIONS_MAX: usize = 16;
/// Most rows of one `queue-list`; some 300 bytes each.
const ROWS_MAX: usize = 10_000;
/// Between two requests, and for one to be worked on.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the socket of a relay with this data directory is.
pub fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// The bound socket; its file goes with it.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// Binds in `data_dir`. The file of a relay that died is replaced; one that still answers, or a file that is no
    /// socket, is left alone and is an error.
    pub fn bind(data_dir: &Path) -> io::Result<ControlSocket> {
        let path = socket_path(data_dir);
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => {
                let text = format!("{} is in the way: it is not a socket", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Ok(_) if ClientStream::connect(&path).is_ok() => {
                let text = format!("another mailramp answers on {}", path.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // Under another name until the mode is right, so that nobody connects before.
        let fresh = data_dir.join("control.new");
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
        fs::rename(&fresh, &path)?;
        Ok(ControlSocket { listener, path })
    }

    /// Answers until `stop` resolves.
    pub async fn serve(self, backend: Arc<dyn Backend>, stop: impl Future<Output = ()>) {
        let mut sessions = JoinSet::new();
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => return,
                Some(_) = sessions.join_next(), if !sessions.is_empty() => {}
                accepted = self.listener.accept(), if sessions.len() < CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => {
                        sessions.spawn(session(stream, backend.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(event = "admin.socket", error = &error as &dyn std::error::Error);
                        // Out of files, most likely: trying at once would fail again, and again.
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The relay's own user, and root.
fn may_command(peer_uid: u32, own_uid: u32) -> bool {
    peer_uid == own_uid || peer_uid == 0
}

async fn session(stream: UnixStream, backend: Arc<dyn Backend>) {
    let Ok(peer) = stream.peer_cred() else { return };
    let mut stream = BufReader::new(stream);
    if !may_command(peer.uid(), rustix::process::geteuid().as_raw()) {
        tracing::warn!(event = "admin.refused", actor = peer.uid());
        let _ = answer(&mut stream, Answer::Refused("only the user of the relay and root may".into())).await;
        return;
    }
    // Let go when the session ends, however it does.
    let mut held = None;
    loop {
        let mut line = Vec::new();
        let mut limited = (&mut stream).take(REQUEST_MAX_BYTES);
        match timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => return,
        }
        if line.last() != Some(&b'\n') {
            let _ = answer(&mut stream, Answer::Refused("a request is one line of at most 64 KiB".into())).await;
            return;
        }
        let said = match understood(&line) {
            Ok(Command::HoldFiles) => {
                held.get_or_insert_with(|| {
                    tracing::info!(event = "admin.action", action = "backup", actor = peer.uid());
                    backend.hold_files()
                });
                Answer::FilesHeld
            }
            Ok(command) => timeout(PATIENCE, obey(command, &*backend, peer.uid()))
                .await
                .unwrap_or_else(|_| Answer::Failed("the relay did not answer within 30 s".into())),
            Err(refusal) => Answer::Refused(refusal),
        };
        if answer(&mut stream, said).await.is_err() {
            return;
        }
    }
}

fn understood(line: &[u8]) -> Result<Command, String> {
    /// All that versions have in common.
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let versioned: Versioned = serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    if versioned.version != VERSION {
        return Err(format!(
            "the relay speaks version {VERSION} of this protocol, the command version {}; use the same mailramp for both",
            versioned.version
        ));
    }
    let request: Request = serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    Ok(request.command)
}

async fn obey(command: Command, backend: &dyn Backend, actor: u32) -> Answer {
    let outcome = match command {
        Command::Status => backend.snapshot().await.map(|snapshot| Answer::Status(Box::new(snapshot))),
        Command::QueueList { filter, limit } => backend.queue(filter, limit.min(ROWS_MAX)).await.map(Answer::QueueList),
        Command::QueueShow { id, headers } => {
            backend.show(id, headers).await.map(|shown| Answer::QueueShow(Box::new(shown)))
        }
        Command::QueueSelect { filter, action, all, ids } => {
            backend.select(filter, action, all, ids).await.map(Answer::QueueSelect)
        }
        Command::HoldFiles => Ok(Answer::FilesHeld),
        Command::AcceptClock { reason } => backend.accept_clock().await.map(|done| {
            let (action, moved_seconds) = ("warmup.accept-clock", done.moved_seconds);
            tracing::warn!(event = "admin.action", action, actor, moved_seconds, reason = %reason);
            Answer::AcceptClock(done)
        }),
        Command::Change(order) => match checked_reason(&order.reason) {
            Ok(reason) => backend.change(ChangeOrder { reason, ..order }, actor).await.map(Answer::Change),
            Err(why) => Err(BackendError::Refused(why)),
        },
        Command::Audit { since_seconds } => backend.audit(since_seconds).await.map(Answer::Audit),
        Command::Explain(order) => backend.explain(order).await.map(|answer| Answer::Explain(Box::new(answer))),
        Command::StreamList => backend.streams().await.map(Answer::StreamList),
        Command::StreamMove(order) => {
            backend.move_stream(order, actor).await.map(|answer| Answer::StreamMove(Box::new(answer)))
        }
        Command::StreamUndo(order) => {
            backend.undo_move(order, actor).await.map(|answer| Answer::StreamMove(Box::new(answer)))
        }
        Command::QueueStep(step) => backend.step(step, actor).await.map(Answer::QueueStep),
    };
    outcome.unwrap_or_else(|error| match error {
        BackendError::Refused(why) => Answer::Refused(why),
        BackendError::NoChange(why) => Answer::NoChange(why),
        BackendError::Unavailable(why) => Answer::Failed(why),
    })
}

async fn answer(stream: &mut BufReader<UnixStream>, answer: Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Response::new(answer)).map_err(io::Error::other)?;
    line.push(b'\n');
    timeout(PATIENCE, stream.get_mut().write_all(&line)).await?
}

/// Why a command got no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens there, or not for us.
    #[error("no running relay answers on {}: {source}", path.display())]
    Unreachable { path: PathBuf, source: io::Error },
    /// It took the request and did not answer as agreed.
    #[error("the relay's answer: {0}")]
    Garbled(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    NoChange(String),
    #[error("{0}")]
    Failed(String),
}

/// Asks the relay once, without async; for commands. Never returns `Answer::Refused`, `Answer::NoChange` or `Answer::Failed`.
pub fn call(socket: &Path, command: Command) -> Result<Answer, CallError> {
    Line::open(socket)?.ask(command)
}

/// A connection to the relay that is asked more than once, without async.
pub struct Line {
    path: PathBuf,
    stream: io::BufReader<ClientStream>,
}

impl Line {
    pub fn open(socket: &Path) -> Result<Line, CallError> {
        let unreachable = |source| CallError::Unreachable { path: socket.into(), source };
        let stream = ClientStream::connect(socket).map_err(unreachable)?;
        let patience = Some(PATIENCE + Duration::from_secs(5));
        stream.set_read_timeout(patience).map_err(unreachable)?;
        stream.set_write_timeout(patience).map_err(unreachable)?;
        Ok(Line { path: socket.into(), stream: io::BufReader::new(stream) })
    }

    /// Never returns `Answer::Refused`, `Answer::NoChange` or `Answer::Failed`.
    pub fn ask(&mut self, command: Command) -> Result<Answer, CallError> {
        let path = self.path.clone();
        let unreachable = |source| CallError::Unreachable { path: path.clone(), source };
        let mut request = serde_json::to_vec(&Request::new(command)).map_err(|e| CallError::Garbled(e.to_string()))?;
        request.push(b'\n');
        self.stream.get_mut().write_all(&request).map_err(unreachable)?;
        let mut line = Vec::new();
        (&mut self.stream).take(ANSWER_MAX_BYTES).read_until(b'\n', &mut line).map_err(unreachable)?;
        if line.is_empty() {
            return Err(unreachable(io::ErrorKind::UnexpectedEof.into()));
        }
        let response: Response =
            serde_json::from_slice(&line).map_err(|error| CallError::Garbled(error.to_string()))?;
        match response.answer {
            Answer::Refused(why) => Err(CallError::Refused(why)),
            Answer::NoChange(why) => Err(CallError::NoChange(why)),
            Answer::Failed(why) => Err(CallError::Failed(why)),
            answer => Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{Change, QueueAction, QueueFilter, QueueStep};
    use crate::admin::fake::{self, FakeBackend};
    use tempfile::TempDir;

    fn start(dir: &TempDir, backend: FakeBackend) -> (Arc<FakeBackend>, tokio::task::JoinHandle<()>) {
        let backend = Arc::new(backend);
        let socket = ControlSocket::bind(dir.path()).unwrap();
        (backend.clone(), tokio::spawn(socket.serve(backend, std::future::pending())))
    }

    async fn ask(dir: &TempDir, command: Command) -> Result<Answer, CallError> {
        let path = socket_path(dir.path());
        tokio::task::spawn_blocking(move || call(&path, command)).await.unwrap()
    }

    #[tokio::test]
    async fn a_command_gets_the_answer_of_the_relay() {
        let dir = TempDir::new().unwrap();
        let (backend, _task) = start(&dir, FakeBackend::default());
        assert_eq!(ask(&dir, Command::Status).await.unwrap(), Answer::Status(Box::new(fake::snapshot())));
        let filter = QueueFilter { stream: Some("digest".into()), ..QueueFilter::default() };
        let action = QueueAction::Flush;
        let select = |ids| Command::QueueSelect { filter: filter.clone(), action, all: false, ids };
        let Answer::QueueSelect(counted) = ask(&dir, select(false)).await.unwrap() else { panic!("no selection") };
        assert_eq!((counted.recipients, counted.ids.len()), (2, 0));
        let Answer::QueueSelect(selected) = ask(&dir, select(true)).await.unwrap() else { panic!("no selection") };
        assert!(backend.steps.lock().unwrap().is_empty(), "a selection changes nothing");
        let step = QueueStep { job: selected.job, action, filter, ids: selected.ids };
        let answer = ask(&dir, Command::QueueStep(step.clone())).await.unwrap();
        assert!(matches!(answer, Answer::QueueStep(done) if done.recipients == 2));
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(*backend.steps.lock().unwrap(), [(step, own)]);
    }

    #[tokio::test]
    async fn a_change_of_the_ramp_reaches_the_relay_with_the_peers_user_and_a_checked_reason() {
        let dir = TempDir::new().unwrap();
        let (backend, _task) = start(&dir, FakeBackend::default());
        let order = |reason: &str, dry_run| {
            let order = ChangeOrder { change: Change::SetDay { day: 5 }, reason: reason.into(), dry_run };
            Command::Change(order)
        };
        for bad in ["", " ", "two\nlines", &"x".repeat(201)] {
            let refused = ask(&dir, order(bad, false)).await.unwrap_err();
            assert!(matches!(refused, CallError::Refused(_)), "{bad:?}: {refused}");
        }
        let Answer::Change(said) = ask(&dir, order("too fast", true)).await.unwrap() else { panic!("no answer") };
        assert!(said.dry_run && backend.changes.lock().unwrap().is_empty(), "a dry run changes nothing");
        assert!(matches!(ask(&dir, order(" too fast ", false)).await.unwrap(), Answer::Change(_)));
        let own = rustix::process::geteuid().as_raw();
        let told = ChangeOrder { change: Change::SetDay { day: 5 }, reason: "too fast".into(), dry_run: false };
        assert_eq!(*backend.changes.lock().unwrap(), [(told, own)]);

        let resume = Command::Change(ChangeOrder { change: Change::Resume, reason: "mended".into(), dry_run: false });
        let nothing = ask(&dir, resume).await.unwrap_err();
        assert!(matches!(&nothing, CallError::NoChange(why) if why == "new is not paused"), "{nothing}");
    }

    #[tokio::test]
    async fn one_connection_serves_several_requests_and_survives_a_bad_one() {
        let dir = TempDir::new().unwrap();
        let (_backend, _task) = start(&dir, FakeBackend::default());
        let mut stream = BufReader::new(UnixStream::connect(socket_path(dir.path())).await.unwrap());
        let mut said = Vec::new();
        for request in [
            "rubbish",
            "{\"version\":7,\"command\":\"time-travel\"}",
            "{\"version\":1,\"command\":\"time-travel\"}",
            "{\"version\":1,\"command\":\"status\"}",
            "{\"version\":1,\"command\":{\"queue-list\":{\"filter\":{\"state\":\"held\"},\"limit\":99}}}",
        ] {
            stream.get_mut().write_all(format!("{request}\n").as_bytes()).await.unwrap();
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            said.push(serde_json::from_str::<Response>(&line).unwrap().answer);
        }
        assert!(matches!(&said[0], Answer::Refused(why) if why.starts_with("not a request")), "{said:?}");
        assert!(matches!(&said[1], Answer::Refused(why) if why.contains("version 7")), "{said:?}");
        assert!(matches!(&said[2], Answer::Refused(why) if why.contains("time-travel")), "{said:?}");
        assert!(matches!(&said[3], Answer::Status(_)));
        assert!(matches!(&said[4], Answer::QueueList(page) if page.rows.len() == 1));
    }

    #[tokio::test]
    async fn files_are_held_once_and_only_as_long_as_the_connection_stands() {
        let dir = TempDir::new().unwrap();
        let (backend, _task) = start(&dir, FakeBackend::default());
        let holds = || backend.holds.load(std::sync::atomic::Ordering::SeqCst);
        let path = socket_path(dir.path());
        let line = tokio::task::spawn_blocking(move || {
            let mut line = Line::open(&path).unwrap();
            for _ in 0..2 {
                assert_eq!(line.ask(Command::HoldFiles).unwrap(), Answer::FilesHeld);
            }
            line
        });
        let line = line.await.unwrap();
        assert_eq!(holds(), 1);
        drop(line);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while holds() > 0 {
            assert!(std::time::Instant::now() < deadline, "still held");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn an_endless_request_is_cut_off() {
        let dir = TempDir::new().unwrap();
        let (_backend, _task) = start(&dir, FakeBackend::default());
        let mut stream = UnixStream::connect(socket_path(dir.path())).await.unwrap();
        stream.write_all(&vec![b'x'; REQUEST_MAX_BYTES as usize]).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("64 KiB"), "{answer}");
    }

    #[tokio::test]
    async fn refusals_and_failures_of_the_relay_are_told_apart() {
        let dir = TempDir::new().unwrap();
        let (_backend, task) = start(&dir, FakeBackend::default());
        let filter = QueueFilter { stream: Some("nosuch".into()), ..QueueFilter::default() };
        let refused = ask(&dir, Command::QueueSelect { filter, action: QueueAction::Drop, all: false, ids: false });
        let refused = refused.await.unwrap_err();
        assert!(matches!(&refused, CallError::Refused(why) if why.contains("nosuch")), "{refused}");
        task.abort();
        let _ = task.await;
        let (_backend, _task) = start(&dir, FakeBackend { broken: true, ..FakeBackend::default() });
        assert!(matches!(ask(&dir, Command::Status).await.unwrap_err(), CallError::Failed(_)));
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_relay_is_replaced_and_that_of_a_live_one_is_not() {
        let dir = TempDir::new().unwrap();
        let path = socket_path(dir.path());
        // A listener that closes leaves its file behind, as a killed relay does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(matches!(call(&path, Command::Status), Err(CallError::Unreachable { .. })));

        let (_backend, _task) = start(&dir, FakeBackend::default());
        assert!(ask(&dir, Command::Status).await.is_ok());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = ControlSocket::bind(dir.path()).err().unwrap();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        assert!(ask(&dir, Command::Status).await.is_ok(), "the first one still answers");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_not_removed() {
        let dir = TempDir::new().unwrap();
        fs::write(socket_path(dir.path()), "precious").unwrap();
        assert!(ControlSocket::bind(dir.path()).is_err());
        assert_eq!(fs::read_to_string(socket_path(dir.path())).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_socket_goes_when_the_relay_stops() {
        let dir = TempDir::new().unwrap();
        let socket = ControlSocket::bind(dir.path()).unwrap();
        socket.serve(Arc::new(FakeBackend::default()), std::future::ready(())).await;
        assert!(!socket_path(dir.path()).exists());
    }

    #[test]
    fn only_the_own_user_and_root_may_command() {
        assert!(may_command(1000, 1000) && may_command(0, 1000));
        assert!(!may_command(1001, 1000) && !may_command(1000, 0));
    }
}
