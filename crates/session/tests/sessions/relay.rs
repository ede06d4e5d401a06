use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use parking_lot::Mutex;

/// A link over TCP that can be cut: what passes it goes on to another address.
#[derive(Clone, Default)]
pub struct Relay {
    streams: Arc<Mutex<Vec<TcpStream>>>,
    closed: Arc<AtomicBool>,
}

impl Relay {
    /// Begins to pass on to `target`; gives where. It ends with the process.
    pub fn start(&self, target: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let relay = self.clone();
        thread::spawn(move || {
            for caller in listener.incoming() {
                // A target that is gone shows as a connection that ends at once.
                let _ = caller.and_then(|caller| relay.pass_on(caller, target));
            }
        });
        at
    }

    fn pass_on(&self, caller: TcpStream, target: SocketAddr) -> io::Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            return Ok(());
        }
        let callee = TcpStream::connect(target)?;
        for (from, to) in [(&caller, &callee), (&callee, &caller)] {
            from.set_nodelay(true)?;
            let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
            thread::spawn(move || {
                // Cut or closed: the other end is told by an end of its stream.
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
        self.streams.lock().extend([caller, callee]);
        Ok(())
    }

    /// Breaks everything that passes now, and lets nothing pass any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.cut();
    }

    /// Breaks everything that passes now.
    pub fn cut(&self) {
        for stream in self.streams.lock().drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
