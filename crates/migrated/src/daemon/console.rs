//! A VM's console: from its process while that lives, from the ring that it left afterwards.

use std::sync::Arc;
use std::time::Duration;

use migrated_control::{ClientError, ConsoleChunk, ConsoleFile, Request, Response};

use super::vm::Vm;
use super::{Daemon, DaemonError};

/// How long one question waits for output at the VM process.
const WAIT: Duration = Duration::from_secs(5);

/// Reads on through a console.
#[derive(Debug)]
pub struct ConsoleReader {
    vm: Arc<Vm>,
    from: u64,
    follow: bool,
}

impl ConsoleReader {
    /// Reads from offset `from`; with `follow`, on until the VM ends.
    pub fn new(vm: Arc<Vm>, from: u64, follow: bool) -> Self {
        Self { vm, from, follow }
    }

    /// The next piece, and the reader for what comes after it. An empty one is the end, except the first.
    pub async fn next(mut self) -> Result<(ConsoleChunk, Self), DaemonError> {
        loop {
            let alive = !self.vm.is_gone();
            let chunk = match self.vm.client() {
                Ok(client) if alive => {
                    let wait = if self.follow { WAIT } else { Duration::ZERO };
                    let request = Request::ConsoleRead {
                        from: self.from,
                        max: ConsoleChunk::MAX as u32,
                        wait_ms: wait.as_millis() as u32,
                    };
                    match client.request_within(request, wait + Duration::from_secs(10)).await {
                        Ok(Response::Console(chunk)) => chunk,
                        Ok(_) => {
                            return Err(self
                                .vm
                                .failed(ClientError::Unexpected("another answer than output")));
                        }
                        // It ended in between: its ring has the rest.
                        Err(_) if self.vm.wait_gone(Duration::from_secs(1)).await => continue,
                        Err(e) => return Err(self.vm.failed(e)),
                    }
                }
                _ => self.left_behind()?,
            };
            let ended = chunk.bytes.is_empty() && (!self.follow || !alive);
            if !chunk.bytes.is_empty() || ended {
                self.from = chunk.from + chunk.bytes.len() as u64;
                return Ok((chunk, self));
            }
        }
    }

    fn left_behind(&self) -> Result<ConsoleChunk, DaemonError> {
        match ConsoleFile::open(&self.vm.dir.console()) {
            Ok(ring) => ring.read(self.from, ConsoleChunk::MAX),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Ok(ConsoleChunk { from: 0, bytes: Vec::new() })
            }
            Err(e) => Err(e),
        }
        .map_err(DaemonError::local("can't read the console's ring"))
    }
}

impl Daemon {
    /// Sends bytes to a VM's serial input.
    pub async fn console_input(&self, vm: &Vm, bytes: &[u8]) -> Result<(), DaemonError> {
        let client = vm.client()?;
        for piece in bytes.chunks(ConsoleChunk::MAX) {
            let request = Request::ConsoleInput { bytes: piece.to_vec() };
            client.perform(request).await.map_err(|e| vm.failed(e))?;
        }
        Ok(())
    }
}
