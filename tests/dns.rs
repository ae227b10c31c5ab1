//! The resolver against a name server of our own over loopback: what is asked, and what becomes of the answers.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const A: u16 = 1;
const NXDOMAIN: u8 = 3;
const SERVFAIL: u8 = 2;

/// Knows `mx.example` (192.0.2.7), fails for `broken.example`, is silent about `silent.example`; nothing else is there.
struct NameServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl NameServer {
    fn start() -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = socket.local_addr().expect("bound");
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let shared = asked.clone();
        std::thread::spawn(move || {
            let mut octets = [0; 1500];
            while let Ok((len, client)) = socket.recv_from(&mut octets) {
                let (name, kind, end) = question(&octets[..len]);
                shared.lock().expect("no test panics inside").push(name.clone());
                let (code, addresses) = match (name.as_str(), kind) {
                    ("mx.example.", A) => (0, vec![[192, 0, 2, 7]]),
                    ("mx.example.", _) => (0, vec![]),
                    ("broken.example.", _) => (SERVFAIL, vec![]),
                    ("silent.example.", _) => continue,
                    _ => (NXDOMAIN, vec![]),
                };
                let _ = socket.send_to(&answer(&octets[..end], code, &addresses), client);
            }
        });
        NameServer { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().expect("no test panics inside").clone();
        asked.dedup();
        asked
    }
}

/// Name, type, and where the question ends (RFC 1035 §4.1.2).
fn question(message: &[u8]) -> (String, u16, usize) {
    let (mut name, mut at) = (String::new(), 12);
    while message[at] > 0 {
        let label = &message[at + 1..at + 1 + usize::from(message[at])];
        name.push_str(&String::from_utf8_lossy(label).to_lowercase());
        name.push('.');
        at += 1 + label.len();
    }
    (name, u16::from_be_bytes([message[at + 1], message[at + 2]]), at + 5)
}

/// Header and question of the query with A records behind them (RFC 1035 §4.1).
fn answer(query: &[u8], code: u8, addresses: &[[u8; 4]]) -> Vec<u8> {
    let mut out = query.to_vec();
    out[2..4].copy_from_slice(&[0x81, 0x80 | code]);
    out[4..12].copy_from_slice(&[0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    for address in addresses {
        out.extend_from_slice(&[0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
        out.extend_from_slice(address);
    }
    out
}

#[tokio::test]
async fn a_name_is_asked_for_as_it_is_at_the_server_of_the_settings() {
    let server = NameServer::start();
    let resolver = mailramp::dns::resolver(&[server.address], Duration::from_secs(5));
    for name in ["mx.example", "MX.example.", "mx.example"] {
        assert_eq!(resolver.addresses(name).await, Ok(vec![IpAddr::from([192, 0, 2, 7])]), "{name}");
    }
    assert_eq!(server.asked(), ["mx.example."], "once, and with nothing hung on");
}

#[tokio::test]
async fn a_name_that_is_not_there_is_not_looked_for_under_another_one() {
    let server = NameServer::start();
    let resolver = mailramp::dns::resolver(&[server.address], Duration::from_secs(5));
    assert!(resolver.addresses("gone.example").await.is_err());
    assert!(resolver.addresses("broken.example").await.is_err());
    assert_eq!(server.asked(), ["gone.example.", "broken.example."]);
}

#[tokio::test]
async fn a_server_that_says_nothing_costs_no_more_than_the_timeout() {
    let server = NameServer::start();
    let resolver = mailramp::dns::resolver(&[server.address], Duration::from_millis(300));
    let began = Instant::now();
    assert!(resolver.addresses("silent.example").await.is_err());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(server.asked().contains(&"silent.example.".to_owned()), "it was asked");
}
