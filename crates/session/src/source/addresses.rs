use migrated_transport::Endpoint;
use parking_lot::Mutex;

/// Where the destination is reached: addresses of one host, of which one is tried at a time.
pub(super) struct Addresses(Mutex<Ring>);

struct Ring {
    endpoints: Vec<Endpoint>,
    /// Which is tried next.
    at: usize,
}

impl Addresses {
    pub(super) fn new(first: Endpoint, others: Vec<Endpoint>) -> Self {
        let endpoints = std::iter::once(first).chain(others).collect();
        Self(Mutex::new(Ring { endpoints, at: 0 }))
    }

    /// The one to try next, which is the one that worked if one did.
    pub(super) fn current(&self) -> Endpoint {
        let ring = self.0.lock();
        ring.endpoints[ring.at].clone()
    }

    /// This one did not work: it will be another's turn, unless that is so already.
    pub(super) fn turn(&self, failed: &Endpoint) {
        let mut ring = self.0.lock();
        if ring.endpoints[ring.at] == *failed {
            ring.at = (ring.at + 1) % ring.endpoints.len();
        }
    }

    /// Somebody knows a better one: it is tried first.
    pub(super) fn prefer(&self, endpoint: Endpoint) {
        let mut ring = self.0.lock();
        ring.endpoints.retain(|known| *known != endpoint);
        ring.endpoints.insert(0, endpoint);
        ring.at = 0;
    }

    /// All of them, the one to try next first.
    pub(super) fn all(&self) -> Vec<Endpoint> {
        let ring = self.0.lock();
        let (before, from) = ring.endpoints.split_at(ring.at);
        [from, before].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16) -> Endpoint {
        Endpoint { addr: ([127, 0, 0, 1], port).into(), server_name: None }
    }

    #[test]
    fn addresses_are_tried_in_turn_and_a_preferred_one_first() {
        let addresses = Addresses::new(endpoint(1), vec![endpoint(2), endpoint(3)]);
        assert_eq!(addresses.current(), endpoint(1));
        addresses.turn(&endpoint(1));
        // The news that it failed came twice.
        addresses.turn(&endpoint(1));
        assert_eq!(addresses.all(), [2, 3, 1].map(endpoint));
        addresses.turn(&endpoint(2));
        addresses.prefer(endpoint(2));
        assert_eq!(addresses.all(), [2, 1, 3].map(endpoint));
        addresses.prefer(endpoint(9));
        assert_eq!(addresses.current(), endpoint(9));
        for port in [9, 2, 1, 3] {
            addresses.turn(&endpoint(port));
        }
        assert_eq!(addresses.current(), endpoint(9));
    }
}
