//! HTTP for monitoring: `/metrics`, `/livez`, `/readyz`, and a page that names them.
//!
//! Reads only: no request changes anything, none has a body that is looked at, none is answered with a name or address
//! of anybody. Connections, silence and the time of a request are bounded, so this side cannot starve the mail side.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, timeout};

use super::readiness::Readiness;
use super::{Backend, mirror};
use crate::metrics::{self, Handler, HttpCode, Metrics};

const CONNECTIONS_MAX: usize = 64;
/// Without an octet in either direction. Longer than the usual minute between two scrapes.
const IDLE_MAX: Duration = Duration::from_secs(75);
/// For one request; a look at readiness takes two seconds at most.
const REQUEST_MAX: Duration = Duration::from_secs(5);

const PLAIN: &str = "text/plain; charset=utf-8";
const LANDING: &str = concat!(
    "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>mailramp</title>",
    "<h1>mailramp</h1><ul>",
    "<li><a href=\"/metrics\">/metrics</a>: numbers for Prometheus</li>",
    "<li><a href=\"/livez\">/livez</a>: the process runs</li>",
    "<li><a href=\"/readyz\">/readyz</a>: mail would be accepted now</li>",
    "</ul><p>For people: <code>mailramp status</code>.</p></html>\n"
);

#[derive(Clone)]
struct Admin {
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
}

/// Answers on `listener` until `stop` resolves, then finishes what is being answered.
pub async fn serve(
    listener: TcpListener,
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    axum::serve(Guarded::new(listener), router(backend, metrics)).with_graceful_shutdown(stop).await
}

fn router(backend: Arc<dyn Backend>, metrics: Arc<Metrics>) -> Router {
    let readiness = Arc::new(Readiness::new(backend.clone()));
    let admin = Admin { backend, metrics, readiness };
    Router::new()
        .route("/", get(|| async { ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], LANDING) }))
        .route("/metrics", get(show_metrics))
        .route("/livez", get(|| async { plain(StatusCode::OK, "alive\n".into()) }))
        .route("/readyz", get(show_readiness))
        .fallback(|| async { plain(StatusCode::NOT_FOUND, "not here; see /\n".into()) })
        .layer(from_fn_with_state(admin.clone(), bound_and_count))
        .with_state(admin)
}

async fn show_metrics(State(admin): State<Admin>) -> Response {
    match admin.backend.snapshot().await {
        Ok(snapshot) => {
            mirror(&admin.metrics, &snapshot);
            ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], admin.metrics.render()).into_response()
        }
        // Not the old numbers: a scrape that fails is seen, gauges that stand still are not.
        Err(error) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

async fn show_readiness(State(admin): State<Admin>) -> Response {
    let faults = admin.readiness.faults().await;
    if faults.is_empty() {
        let note = if admin.backend.is_dry_run() { "dry run: everything goes by legacy\n" } else { "" };
        return plain(StatusCode::OK, format!("ready\n{note}"));
    }
    plain(StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{}\n", faults.join("\n")))
}

fn plain(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, PLAIN)], text).into_response()
}

async fn bound_and_count(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    let handler = match request.uri().path() {
        "/" => Handler::Landing,
        "/metrics" => Handler::Metrics,
        "/livez" => Handler::Livez,
        "/readyz" => Handler::Readyz,
        _ => Handler::Other,
    };
    let mut response = match timeout(REQUEST_MAX, next.run(request)).await {
        Ok(response) => response,
        Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "took too long\n".into()),
    };
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, axum::http::HeaderValue::from_static(value));
    }
    let code = HttpCode::of_status(response.status().as_u16());
    admin.metrics.http_requests.of(handler).of(code).inc();
    response
}

/// A listener that holds few connections and drops silent ones.
struct Guarded {
    listener: TcpListener,
    free: Arc<Semaphore>,
}

impl Guarded {
    fn new(listener: TcpListener) -> Self {
        Guarded { listener, free: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl axum::serve::Listener for Guarded {
    type Io = Patient;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Patient, SocketAddr) {
        let permit = self.free.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        (Patient { stream, idle: Box::pin(tokio::time::sleep(IDLE_MAX)), _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when nothing moves for [`IDLE_MAX`].
struct Patient {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Patient {
    fn check<T>(&mut self, cx: &mut Context<'_>, progress: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.idle.as_mut().reset(Instant::now() + IDLE_MAX);
        } else if self.idle.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        progress
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.check(cx, progress)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.check(cx, progress)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::FakeBackend;
    use crate::metrics::Build;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Running {
        address: SocketAddr,
        metrics: Arc<Metrics>,
    }

    async fn start(backend: FakeBackend) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new(&Build::default(), &["default".into()]).unwrap());
        tokio::spawn(serve(listener, Arc::new(backend), metrics.clone(), std::future::pending()));
        Running { address, metrics }
    }

    async fn ask(running: &Running, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_come_as_prometheus_text_with_the_state_of_the_moment() {
        let running = start(FakeBackend::default()).await;
        let answer = ask(&running, "GET", "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
        assert!(answer.contains("\nmailramp_warmup_limit_recipients 1281\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_spool_that_does_not_answer_makes_the_scrape_fail_but_not_liveness() {
        let running = start(FakeBackend { broken: true, ..FakeBackend::default() }).await;
        assert!(ask(&running, "GET", "/metrics").await.starts_with("HTTP/1.1 503"));
        assert!(ask(&running, "GET", "/livez").await.starts_with("HTTP/1.1 200"));
        let answer = ask(&running, "GET", "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with("not ready\nno listener is open\nspool: the spool does not answer\n"), "{answer}");
    }

    #[tokio::test]
    async fn the_landing_page_names_what_there_is_and_loads_nothing() {
        let running = start(FakeBackend::default()).await;
        let answer = ask(&running, "GET", "/").await;
        for path in ["/metrics", "/livez", "/readyz"] {
            assert!(answer.contains(path), "{answer}");
        }
        assert!(answer.contains("content-security-policy: default-src 'none'"));
    }

    #[tokio::test]
    async fn only_reading_is_possible_and_each_request_is_counted() {
        let running = start(FakeBackend::default()).await;
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            assert!(ask(&running, method, "/metrics").await.starts_with("HTTP/1.1 405"), "{method}");
        }
        assert!(ask(&running, "GET", "/../etc/passwd").await.starts_with("HTTP/1.1 404"));
        assert!(ask(&running, "HEAD", "/livez").await.starts_with("HTTP/1.1 200"));
        let count = |handler, code| running.metrics.http_requests.of(handler).of(code).get();
        assert_eq!(count(Handler::Metrics, HttpCode::MethodNotAllowed), 4);
        assert_eq!(count(Handler::Other, HttpCode::NotFound), 1);
        assert_eq!(count(Handler::Livez, HttpCode::Ok), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_dropped() {
        let running = start(FakeBackend::default()).await;
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        stream.write_all(b"GET /livez HT").await.unwrap();
        let mut rest = Vec::new();
        // Time stands still except for timers: this returns only because the other side closed.
        let _ = timeout(IDLE_MAX * 2, stream.read_to_end(&mut rest)).await.expect("closed before twice the limit");
    }
}
