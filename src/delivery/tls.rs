//! How a connection to a next hop is secured: the policy, and two connectors that all connections share.
//!
//! `verify` trusts the system's roots and an optional file of further ones. `may` and `encrypt` take any certificate:
//! they keep out who only listens, not who answers in the next hop's place, so a password never goes through them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::TlsConnector;

/// What a next hop's TLS must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsLevel {
    /// In clear.
    Off,
    /// STARTTLS when offered and when it works, any certificate; else in clear.
    May,
    /// Never in clear, any certificate.
    Encrypt,
    /// Never in clear, and the certificate is good for the host's name.
    Verify,
}

/// How to secure the connections of one target.
#[derive(Clone, Debug)]
pub struct TlsPolicy {
    pub level: TlsLevel,
    /// TLS from the first octet (RFC 8314); never falls back to clear, whatever the level but `Off`.
    pub implicit: bool,
    pub connectors: TlsConnectors,
}

/// Why the connectors could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    #[error("cannot read certificates from {path}: {reason}")]
    CaFile { path: PathBuf, reason: String },
    /// The linked cryptography does not do TLS 1.2 or 1.3; a fault of the build.
    #[error("TLS: {0}")]
    Provider(#[from] rustls::Error),
}

/// The two connectors; cheap to clone. Session tickets are shared by all clones.
#[derive(Clone)]
pub struct TlsConnectors {
    verifying: TlsConnector,
    accepting: TlsConnector,
    roots: usize,
}

impl TlsConnectors {
    /// Reads the system's roots, and `ca_file` (PEM) in addition. Blocks on the disk.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, TlsSetupError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = ca_file {
            let unreadable = |reason: String| TlsSetupError::CaFile { path: path.into(), reason };
            let mut found = 0;
            for certificate in CertificateDer::pem_file_iter(path).map_err(|e| unreadable(e.to_string()))? {
                let certificate = certificate.map_err(|e| unreadable(e.to_string()))?;
                roots.add(certificate).map_err(|e| unreadable(e.to_string()))?;
                found += 1;
            }
            if found == 0 {
                return Err(unreadable("no certificate in it".into()));
            }
        }
        // Named, because a process into which another crate brings a second provider has no default and panics.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let count = roots.len();
        let verifying = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let accepting = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
            .with_no_client_auth();
        Ok(TlsConnectors {
            verifying: TlsConnector::from(Arc::new(verifying)),
            accepting: TlsConnector::from(Arc::new(accepting)),
            roots: count,
        })
    }

    /// Certificates trusted by `verify`. With none of them every handshake fails.
    pub fn roots(&self) -> usize {
        self.roots
    }

    pub(super) fn for_level(&self, level: TlsLevel) -> &TlsConnector {
        match level {
            TlsLevel::Verify => &self.verifying,
            TlsLevel::Off | TlsLevel::May | TlsLevel::Encrypt => &self.accepting,
        }
    }
}

impl fmt::Debug for TlsConnectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TlsConnectors({} roots)", self.roots)
    }
}

/// Takes any certificate, but still wants its holder to prove that the key is theirs.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
