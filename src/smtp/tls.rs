//! TLS at the front door: the certificate and the handshake.
//!
//! Promises: a certificate is taken only when chain and key could be read, belong together, and nobody else can read
//! the key. A handshake is given the socket and nothing else, so no octet sent in clear is ever taken for one sent
//! through TLS (RFC 3207 §6). A certificate never changes: another one comes with other [`super::server::Terms`], for
//! the connections that follow.
//!
//! TLS 1.2 and 1.3 with AEAD ciphers, tickets for resumption, no ALPN, no client certificates.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::server::{Acceptor, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::stream::Plain;
use crate::message::Timestamp;

/// Why a certificate was not taken.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The chain cannot be read or used.
    #[error("`smtp.tls.cert` must be a file of PEM certificates, the server's own first; {path}: {reason}")]
    Chain { path: PathBuf, reason: String },
    /// The key cannot be read or used, or is not the certificate's.
    #[error("`smtp.tls.key` must be the PEM key of the certificate; {path}: {reason}")]
    Key { path: PathBuf, reason: String },
    /// The key is open to everybody on this machine.
    #[error("`smtp.tls.key` must not be readable by others: {path} has mode {mode:03o}; chmod 600 {path}")]
    KeyOpenToOthers { path: PathBuf, mode: u32 },
}

/// Why a connection did not become TLS. It is closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// Closed without a single octet: a probe, not an attempt.
    #[error("closed before the handshake")]
    Untried,
    #[error("no end of the handshake within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("{0}")]
    Failed(#[from] io::Error),
}

/// A certificate and how handshakes are made with it; the same for all listeners. Tickets are good for as long as it is
/// in use, so that nobody goes on with a certificate that was withdrawn.
#[derive(Debug)]
pub struct ServerTls {
    settings: Arc<ServerConfig>,
    not_after: Timestamp,
}

/// How many handshakes may compute at once, whatever their certificate. Half of the processors: the others stay free
/// for sessions and clients without TLS, and who waits here waits for other handshakes only, in the order of arrival.
static COMPUTING: LazyLock<Semaphore> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Semaphore::new((processors / 2).max(1))
});

impl ServerTls {
    /// Reads chain and key. Blocks on the disk.
    pub fn load(chain_path: &Path, key_path: &Path) -> Result<ServerTls, CertificateError> {
        let bad_chain = |reason: String| CertificateError::Chain { path: chain_path.into(), reason };
        let bad_key = |reason: String| CertificateError::Key { path: key_path.into(), reason };

        let (pem, _) = read(chain_path).map_err(&bad_chain)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let chain = chain.map_err(|error| bad_chain(error.to_string()))?;
        let first = chain.first().ok_or_else(|| bad_chain("no certificate in it".into()))?;
        let not_after = not_after(first).map_err(&bad_chain)?;

        let (pem, mode) = read(key_path).map_err(&bad_key)?;
        let pem = zeroize::Zeroizing::new(pem);
        if mode & 0o007 != 0 {
            return Err(CertificateError::KeyOpenToOthers { path: key_path.into(), mode });
        }
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| bad_key(error.to_string()))?;
        // Named, because a process into which another crate brings a second provider has no default and panics.
        let provider = default_provider();
        // Also says whether the key is the one in the certificate.
        let pair = CertifiedKey::from_der(chain, key, &provider).map_err(|error| bad_key(error.to_string()))?;
        let settings = settings(provider, pair).map_err(|error| bad_key(error.to_string()))?;
        Ok(ServerTls { settings: Arc::new(settings), not_after })
    }

    /// When the certificate expires.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Takes a connection in clear and gives back one that is TLS, by `patience` after now at the latest.
    ///
    /// Nothing can be carried over: [`Plain`] is a socket without a buffer, and no other octets go in.
    pub(super) async fn handshake(
        &self,
        plain: Plain,
        patience: Duration,
    ) -> Result<Box<TlsStream<TcpStream>>, HandshakeError> {
        let deadline = Instant::now() + patience;
        timeout_at(deadline, self.shake_hands(plain.into_socket()))
            .await
            .unwrap_or(Err(HandshakeError::TimedOut(patience)))
    }

    async fn shake_hands(&self, socket: TcpStream) -> Result<Box<TlsStream<TcpStream>>, HandshakeError> {
        // A connection that only waits holds no buffer yet.
        if socket.peek(&mut [0]).await? == 0 {
            return Err(HandshakeError::Untried);
        }
        // Half a hello costs a buffer but no computing, so a flood of them keeps nobody from his turn.
        let hello = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
        let begun = {
            let _turn = COMPUTING.acquire().await.expect("never closed");
            // Key exchange and signature, here and now; what comes after the client's next flight is cheap.
            hello.into_stream(self.settings.clone())
        };
        let mut stream = Box::new(begun.await?);
        stream.get_mut().1.set_buffer_limit(Some(REPLIES_MAX_OCTETS));
        Ok(stream)
    }
}

fn settings(provider: CryptoProvider, pair: CertifiedKey) -> Result<ServerConfig, rustls::Error> {
    let mut settings = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
    // What is needed to resume is in the client's ticket, not in our memory.
    settings.ticketer = Ticketer::new()?;
    settings.session_storage = Arc::new(NoServerSessionStorage {});
    settings.send_tls13_tickets = 1;
    Ok(settings)
}

/// When the certificate expires. A verifier is asked at the end of time: it compares the dates before anything else,
/// and its refusal names the last good moment.
fn not_after(certificate: &CertificateDer<'_>) -> Result<Timestamp, String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| error.to_string())?;
    let end_of_time = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    let usage = webpki::KeyUsage::server_auth();
    match parsed.verify_for_usage(&[], &[], &[], end_of_time, usage, None, None) {
        // A certificate may name the year 9999, which no timestamp reaches; then it is "never".
        Err(webpki::Error::CertExpired { not_after, .. }) => {
            Ok(Timestamp::default().after(Duration::from_secs(not_after.as_secs())))
        }
        Err(other) => Err(other.to_string()),
        Ok(_) => Err("it names no end".into()),
    }
}

/// All of a file, and its permission bits.
fn read(path: &Path) -> Result<(Vec<u8>, u32), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let about = file.metadata().map_err(|error| error.to_string())?;
    if !about.is_file() {
        return Err("is not a file".into());
    }
    let mut octets = Vec::new();
    file.take(PEM_MAX_OCTETS + 1).read_to_end(&mut octets).map_err(|error| error.to_string())?;
    if octets.len() as u64 > PEM_MAX_OCTETS {
        return Err(format!("is larger than {PEM_MAX_OCTETS} octets"));
    }
    Ok((octets, about.permissions().mode() & 0o777))
}

/// What may wait inside TLS for a client that does not read: a record, and no further one is made before it is sent.
const REPLIES_MAX_OCTETS: usize = 16 * 1024;
const PEM_MAX_OCTETS: u64 = 1 << 20; // hundreds of certificates

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    /// A certificate that ends with 2030-01-31, and its key, in files.
    fn files() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
        issue(&chain, &key);
        (folder, chain, key)
    }

    fn issue(chain: &Path, key: &Path) {
        issue_until(2030, chain, key);
    }

    fn issue_until(year: i32, chain: &Path, key: &Path) {
        let pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["relay.example".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 31);
        write(chain, params.self_signed(&pair).unwrap().pem()).unwrap();
        write(key, pair.serialize_pem()).unwrap();
        set_permissions(key, Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn a_certificate_and_its_key_are_taken_and_its_end_is_known() {
        let (_folder, chain, key) = files();
        let tls = ServerTls::load(&chain, &key).unwrap();
        assert_eq!(tls.not_after(), Timestamp::from_seconds(1_896_048_000)); // 2030-01-31T00:00:00Z
        issue_until(9999, &chain, &key);
        assert_eq!(ServerTls::load(&chain, &key).unwrap().not_after(), Timestamp::NEVER);
        issue_until(1974, &chain, &key);
        assert!(ServerTls::load(&chain, &key).is_err(), "before it begins");
    }

    #[test]
    fn each_fault_of_the_files_has_its_words() {
        let (folder, chain, key) = files();
        let other = folder.path().join("other.pem");
        issue(&folder.path().join("other-chain.pem"), &other);
        let (garbage, missing) = (folder.path().join("garbage.pem"), folder.path().join("missing.pem"));
        write(&garbage, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        set_permissions(&garbage, Permissions::from_mode(0o600)).unwrap();
        let large = folder.path().join("large.pem");
        write(&large, vec![b'x'; 1 << 21]).unwrap();
        let table: [(&Path, &Path, &str, &str); 8] = [
            (&missing, &key, "`smtp.tls.cert`", "No such file"),
            (folder.path(), &key, "`smtp.tls.cert`", "is not a file"),
            (&key, &key, "`smtp.tls.cert`", "no certificate in it"),
            (&garbage, &key, "`smtp.tls.cert`", "garbage.pem"),
            (&large, &key, "`smtp.tls.cert`", "larger than 1048576 octets"),
            (&chain, &missing, "`smtp.tls.key`", "No such file"),
            (&chain, &garbage, "`smtp.tls.key`", "garbage.pem"),
            (&chain, &other, "`smtp.tls.key`", "keys"),
        ];
        for (chain, key, setting, words) in table {
            let error = ServerTls::load(chain, key).unwrap_err().to_string();
            assert!(error.contains(setting) && error.contains(words), "{words:?} is missing: {error}");
        }
        for mode in [0o604, 0o644, 0o602] {
            set_permissions(&key, Permissions::from_mode(mode)).unwrap();
            let error = ServerTls::load(&chain, &key).unwrap_err().to_string();
            assert!(error.contains("chmod 600") && error.contains(&format!("mode {mode:03o}")), "{error}");
        }
        set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
        assert!(ServerTls::load(&chain, &key).is_ok(), "the group is the operator's business");
    }
}
