//! A name server on a loopback port that says about mail servers what a test wants, over UDP and TCP.
#![allow(dead_code)] // each test binary uses its part

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex};

const MX: u16 = 15;
const CNAME: u16 = 5;
const NXDOMAIN: u8 = 3;
const SERVFAIL: u8 = 2;
/// RFC 1035 §4.1.1: answers of this server are authoritative, and recursion is there.
const FLAGS: [u8; 2] = [0x85, 0x80];
const TRUNCATED: u8 = 0x02;

/// What is said about one domain.
#[derive(Clone, Debug)]
pub enum Say {
    /// Preferences and hosts, kept for so many seconds.
    Mx(Vec<(u16, String)>, u32),
    /// It is another name for this one, whose servers stand beside it.
    Alias(String, Vec<(u16, String)>, u32),
    /// It is there, without mail servers.
    NoMx,
    /// There is no such domain.
    NoDomain,
    Fail,
    /// Nothing at all.
    Silence,
    /// Too much for UDP: asks to come again over TCP, where this is said.
    OverTcp(Box<Say>),
    /// These octets behind the header, whatever they are.
    Octets(Vec<u8>),
}

pub fn mx(servers: &[(u16, &str)], ttl: u32) -> Say {
    Say::Mx(servers.iter().map(|(preference, host)| (*preference, (*host).to_owned())).collect(), ttl)
}

/// The server. Its threads end with the process.
#[derive(Clone)]
pub struct NameServer {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

struct Zone {
    says: HashMap<String, Say>,
    otherwise: Say,
    asked: Vec<String>,
}

impl NameServer {
    /// About domains that `say` does not name, `otherwise` is said.
    pub fn start(otherwise: Say) -> NameServer {
        let (udp, tcp) = (0..100)
            .find_map(|_| {
                let udp = UdpSocket::bind("127.0.0.1:0").ok()?;
                let tcp = TcpListener::bind(udp.local_addr().ok()?).ok()?;
                Some((udp, tcp))
            })
            .expect("a port that is free for both");
        let address = udp.local_addr().expect("bound");
        let zone = Arc::new(Mutex::new(Zone { says: HashMap::new(), otherwise, asked: Vec::new() }));
        let (of_udp, of_tcp) = (zone.clone(), zone.clone());
        std::thread::spawn(move || {
            let mut octets = [0; 1500];
            while let Ok((len, client)) = udp.recv_from(&mut octets) {
                if let Some(answer) = answer(&octets[..len], &of_udp, true) {
                    let _ = udp.send_to(&answer, client);
                }
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                let zone = of_tcp.clone();
                std::thread::spawn(move || serve(stream, &zone));
            }
        });
        NameServer { address, zone }
    }

    pub fn say(&self, domain: &str, say: Say) {
        self.zone.lock().expect("no panic inside").says.insert(format!("{domain}."), say);
    }

    pub fn say_otherwise(&self, say: Say) {
        self.zone.lock().expect("no panic inside").otherwise = say;
    }

    /// Every question so far, with the dot at the end.
    pub fn asked(&self) -> Vec<String> {
        self.zone.lock().expect("no panic inside").asked.clone()
    }
}

fn serve(mut stream: std::net::TcpStream, zone: &Mutex<Zone>) {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        if stream.read_exact(&mut query).is_err() {
            return;
        }
        let Some(answer) = answer(&query, zone, false) else { continue };
        let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
        if stream.write_all(&framed).is_err() {
            return;
        }
    }
}

fn answer(query: &[u8], zone: &Mutex<Zone>, over_udp: bool) -> Option<Vec<u8>> {
    let (name, kind, end) = question(query);
    let mut zone = zone.lock().expect("no panic inside");
    zone.asked.push(name.clone());
    let mut say = zone.says.get(&name).unwrap_or(&zone.otherwise).clone();
    let mut out = query[..end].to_vec();
    out[2..4].copy_from_slice(&FLAGS);
    out[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    if let Say::OverTcp(inner) = say {
        if over_udp {
            out[2] |= TRUNCATED;
            return Some(out);
        }
        say = *inner;
    }
    let mut records = 0u16;
    match say {
        Say::Silence => return None,
        Say::NoMx => {}
        Say::NoDomain => out[3] |= NXDOMAIN,
        Say::Fail => out[3] |= SERVFAIL,
        Say::OverTcp(_) => unreachable!("not one in another"),
        Say::Octets(octets) => {
            records = 1;
            out.extend(octets);
        }
        Say::Mx(_, _) | Say::Alias(_, _, _) if kind != MX => {}
        Say::Mx(servers, ttl) => records = servers_of(&mut out, &name, &servers, ttl),
        Say::Alias(target, servers, ttl) => {
            record(&mut out, &name, CNAME, ttl, &encoded(&target));
            records = 1 + servers_of(&mut out, &target, &servers, ttl);
        }
    }
    out[6..8].copy_from_slice(&records.to_be_bytes());
    Some(out)
}

fn servers_of(out: &mut Vec<u8>, name: &str, servers: &[(u16, String)], ttl: u32) -> u16 {
    for (preference, host) in servers {
        let data = [&preference.to_be_bytes()[..], &encoded(host)].concat();
        record(out, name, MX, ttl, &data);
    }
    servers.len() as u16
}

fn record(out: &mut Vec<u8>, name: &str, kind: u16, ttl: u32, data: &[u8]) {
    out.extend(encoded(name));
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out.extend(ttl.to_be_bytes());
    out.extend((data.len() as u16).to_be_bytes());
    out.extend(data);
}

/// Labels without compression (RFC 1035 §3.1).
fn encoded(name: &str) -> Vec<u8> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    let mut octets: Vec<u8> = labels.flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat()).collect();
    octets.push(0);
    octets
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
