//! How many connections there may be. Knows addresses and numbers, no sockets.

use core::net::IpAddr;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Opened;

/// How many connections are open, in all and by address. One for all listeners.
#[derive(Debug)]
pub struct ConnectionCounts {
    max: AtomicUsize,
    max_per_address: AtomicUsize,
    open: Mutex<OpenCounts>,
}

/// What a connection is before it has said anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// May send mail as it is.
    Admitted,
    /// Must authenticate first; until then it takes one of the fewer places there are for strangers.
    Stranger,
}

#[derive(Debug, Default)]
struct OpenCounts {
    all: usize,
    by_address: HashMap<IpAddr, OfAddress>,
}

#[derive(Clone, Copy, Debug, Default)]
struct OfAddress {
    all: usize,
    strangers: usize,
}

impl ConnectionCounts {
    /// Of one address, half of `max_per_address` may be strangers.
    pub fn new(max: usize, max_per_address: usize) -> Self {
        ConnectionCounts { max: max.into(), max_per_address: max_per_address.into(), open: Mutex::default() }
    }

    /// From the next connection on; those beyond it stay.
    pub fn change(&self, max: usize, max_per_address: usize) {
        self.max.store(max, Ordering::Relaxed);
        self.max_per_address.store(max_per_address, Ordering::Relaxed);
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.lock().all
    }

    /// Counts a connection until the slot is dropped. The error says which limit is reached.
    pub(super) fn enter(self: &Arc<Self>, client: IpAddr, standing: Standing) -> Result<Slot, Opened> {
        let mut open = self.lock();
        if open.all >= self.max.load(Ordering::Relaxed) {
            return Err(Opened::TooMany);
        }
        let is_stranger = standing == Standing::Stranger;
        let mut counts = open.by_address.get(&client).copied().unwrap_or_default();
        let max_per_address = self.max_per_address.load(Ordering::Relaxed);
        let strangers_max = max_per_address.div_ceil(2);
        if counts.all >= max_per_address || (is_stranger && counts.strangers >= strangers_max) {
            return Err(Opened::TooManyFromAddress);
        }
        counts.all += 1;
        counts.strangers += usize::from(is_stranger);
        open.all += 1;
        open.by_address.insert(client, counts);
        Ok(Slot { counts: self.clone(), client, is_stranger })
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
    is_stranger: bool,
}

impl Slot {
    /// The client is no stranger any more. Cheap when it is none already.
    pub fn authenticated(&mut self) {
        if std::mem::take(&mut self.is_stranger)
            && let Some(counts) = self.counts.lock().by_address.get_mut(&self.client)
        {
            counts.strangers -= 1;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.authenticated();
        let mut open = self.counts.lock();
        open.all -= 1;
        if let Some(counts) = open.by_address.get_mut(&self.client) {
            counts.all -= 1;
            if counts.all == 0 {
                open.by_address.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Standing::{Admitted, Stranger};
    use super::*;

    #[test]
    fn a_place_is_given_back_and_an_address_without_connections_is_forgotten() {
        let counts = Arc::new(ConnectionCounts::new(2, 1));
        let (one, two, three) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap(), "::1".parse().unwrap());
        let slot = counts.enter(one, Admitted).unwrap();
        assert_eq!(counts.enter(one, Admitted).unwrap_err(), Opened::TooManyFromAddress);
        let _other = counts.enter(two, Admitted).unwrap();
        assert_eq!(counts.enter(three, Admitted).unwrap_err(), Opened::TooMany);
        drop(slot);
        assert_eq!((counts.open(), counts.lock().by_address.len()), (1, 1));
        assert!(counts.enter(three, Admitted).is_ok());
    }

    #[test]
    fn strangers_have_half_the_places_until_they_authenticate() {
        let counts = Arc::new(ConnectionCounts::new(100, 4));
        let client = "192.0.2.1".parse().unwrap();
        let mut first = counts.enter(client, Stranger).unwrap();
        let second = counts.enter(client, Stranger).unwrap();
        assert_eq!(counts.enter(client, Stranger).unwrap_err(), Opened::TooManyFromAddress);
        let _third = counts.enter(client, Admitted).expect("strangers take no places of others");
        first.authenticated();
        first.authenticated();
        let _fourth = counts.enter(client, Stranger).expect("one of them is none any more");
        assert_eq!(counts.enter(client, Admitted).unwrap_err(), Opened::TooManyFromAddress);
        drop(first);
        assert_eq!(counts.enter(client, Stranger).unwrap_err(), Opened::TooManyFromAddress, "still two strangers");
        drop(second);
        assert!(counts.enter(client, Stranger).is_ok());
        assert!(counts.enter("192.0.2.2".parse().unwrap(), Stranger).is_ok());
    }
}
