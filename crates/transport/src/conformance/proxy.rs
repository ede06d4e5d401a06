use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::{Cut, Direction};

/// Forwards one TCP connection to a listener, and breaks it at a chosen byte.
pub struct CuttingProxy {
    addr: SocketAddr,
    passed: Arc<[AtomicU64; 2]>,
}

impl CuttingProxy {
    /// A proxy to `target` for the first connection that is made to [`addr`](Self::addr).
    ///
    /// # Panics
    /// When loopback has no free port.
    #[must_use]
    pub fn new(target: SocketAddr, cut: Option<Cut>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on loopback");
        let addr = listener.local_addr().expect("its address");
        let passed: Arc<[AtomicU64; 2]> = Arc::default();
        let counters = Arc::clone(&passed);
        // It ends with the connection; a proxy that nobody called ends with the process.
        std::thread::spawn(move || {
            let caller = listener.accept().expect("a caller").0;
            drop(listener);
            let Ok(callee) = TcpStream::connect(target) else { return };
            for socket in [&caller, &callee] {
                socket.set_nodelay(true).expect("a socket option");
            }
            std::thread::scope(|scope| {
                let pump = |from, to, direction| Pump { from, to, direction, cut, counters: &counters };
                let back = pump(&callee, &caller, Direction::ToCaller);
                scope.spawn(move || back.run());
                pump(&caller, &callee, Direction::ToListener).run();
            });
        });
        Self { addr, passed }
    }

    /// Where the proxy listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Bytes forwarded so far.
    #[must_use]
    pub fn passed(&self, direction: Direction) -> u64 {
        self.passed[direction as usize].load(Ordering::SeqCst)
    }
}

struct Pump<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    direction: Direction,
    cut: Option<Cut>,
    counters: &'a [AtomicU64; 2],
}

impl Pump<'_> {
    fn run(self) {
        let mut left = match self.cut {
            Some(cut) if cut.direction == self.direction => cut.after,
            _ => u64::MAX,
        };
        let mut buf = [0; 16 << 10];
        let (mut from, mut to) = (self.from, self.to);
        while left > 0 {
            let Ok(got @ 1..) = from.read(&mut buf) else { break };
            let take = got.min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= take as u64;
            // Counted first: whoever got the bytes may look at once.
            self.counters[self.direction as usize].fetch_add(take as u64, Ordering::SeqCst);
            if to.write_all(&buf[..take]).is_err() {
                break;
            }
        }
        if left == 0 {
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        } else {
            let _ = to.shutdown(Shutdown::Write);
        }
    }
}
