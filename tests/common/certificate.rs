//! A self-signed certificate for relay.example in files, and clients that trust it.
#![allow(dead_code)] // each test binary uses its part

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::TlsConnector;

pub struct Files {
    pub chain: PathBuf,
    pub key: PathBuf,
    folder: tempfile::TempDir,
}

impl Files {
    pub fn new() -> Files {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let files = Files { chain: folder.path().join("chain.pem"), key: folder.path().join("key.pem"), folder };
        files.renew();
        files
    }

    /// Another certificate with another key in the same files.
    pub fn renew(&self) {
        self.renew_until(2199);
    }

    pub fn renew_until(&self, year: i32) {
        let mut params = CertificateParams::new(vec!["relay.example".to_owned()]).expect("a name");
        params.not_after = date_time_ymd(year, 1, 1);
        self.write(params);
    }

    /// One that expires this number of days from now.
    pub fn renew_for_days(&self, days: u64) {
        let mut params = CertificateParams::new(vec!["relay.example".to_owned()]).expect("a name");
        params.not_after = (std::time::SystemTime::now() + std::time::Duration::from_secs(days * 86_400 + 3600)).into();
        self.write(params);
    }

    fn write(&self, params: CertificateParams) {
        let signing_key = KeyPair::generate().expect("a key");
        let cert = params.self_signed(&signing_key).expect("a certificate");
        fs::write(&self.chain, cert.pem()).expect("written");
        fs::write(&self.key, signing_key.serialize_pem()).expect("written");
        fs::set_permissions(&self.key, fs::Permissions::from_mode(0o600)).expect("its mode can be set");
    }

    /// For clients that trust what is in the file now, and verify it.
    pub fn config(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.chain).expect("PEM")).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).expect("versions");
        Arc::new(config.with_root_certificates(roots).with_no_client_auth())
    }

    pub fn connector(&self, versions: &[&'static SupportedProtocolVersion]) -> TlsConnector {
        TlsConnector::from(self.config(versions))
    }

    /// The first octets of a handshake.
    pub fn client_hello(&self) -> Vec<u8> {
        let name = "relay.example".try_into().expect("a name");
        let mut client = rustls::ClientConnection::new(self.config(rustls::ALL_VERSIONS), name).expect("a client");
        let mut octets = Vec::new();
        client.write_tls(&mut octets).expect("a vector takes all");
        octets
    }
}
