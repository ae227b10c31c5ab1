//! How many connections there may be. Knows addresses and numbers, no sockets.

use core::net::IpAddr;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Opened;

/// How many connections are open, in all and by address. One for all listeners.
#[derive(Debug)]
pub struct ConnectionCounts {
    max: usize,
    max_per_address: usize,
    open: Mutex<OpenCounts>,
}

#[derive(Debug, Default)]
struct OpenCounts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl ConnectionCounts {
    pub fn new(max: usize, max_per_address: usize) -> Self {
        ConnectionCounts { max, max_per_address, open: Mutex::default() }
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.lock().all
    }

    /// Counts a connection until the slot is dropped. The error says which limit is reached.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr) -> Result<Slot, Opened> {
        let mut open = self.lock();
        if open.all >= self.max {
            return Err(Opened::TooMany);
        }
        let from_address = open.by_address.get(&client).copied().unwrap_or(0);
        if from_address >= self.max_per_address {
            return Err(Opened::TooManyFromAddress);
        }
        open.all += 1;
        open.by_address.insert(client, from_address + 1);
        Ok(Slot { counts: self.clone(), client })
    }

    /// Plain numbers that no panic leaves half written.
    fn lock(&self) -> MutexGuard<'_, OpenCounts> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) struct Slot {
    counts: Arc<ConnectionCounts>,
    client: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut open = self.counts.lock();
        open.all -= 1;
        if let Some(count) = open.by_address.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.by_address.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back_and_an_address_without_connections_is_forgotten() {
        let counts = Arc::new(ConnectionCounts::new(2, 1));
        let (one, two, three) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap(), "::1".parse().unwrap());
        let slot = counts.enter(one).unwrap();
        assert_eq!(counts.enter(one).unwrap_err(), Opened::TooManyFromAddress);
        let _other = counts.enter(two).unwrap();
        assert_eq!(counts.enter(three).unwrap_err(), Opened::TooMany);
        drop(slot);
        assert_eq!((counts.open(), counts.lock().by_address.len()), (1, 1));
        assert!(counts.enter(three).is_ok());
    }
}
