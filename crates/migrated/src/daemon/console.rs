//! A VM's console: from its process while that lives, from the ring that it left afterwards.

use std::sync::Arc;
use std::time::Duration;

use migrated_control::{ClientError, ConsoleChunk, ConsoleFile, Request, Response};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::vm::Vm;
use super::{Daemon, DaemonError};

/// How long one question waits for output at the VM process.
const WAIT: Duration = Duration::from_secs(2);
/// How long its answer may take beyond that.
const ANSWER: Duration = Duration::from_secs(10);

/// Reads on through a console's output. It holds no more than one piece: a reader that is slow is overtaken by the
/// guest, for which nobody waits, and then told what it missed.
#[derive(Debug)]
pub struct ConsoleReader {
    daemon: Arc<Daemon>,
    vm: Arc<Vm>,
    from: u64,
    follow: Option<Following>,
}

#[derive(Debug)]
struct Following {
    /// How long nothing may come.
    idle: Option<Duration>,
    _seat: OwnedSemaphorePermit,
}

/// How a console's answer begins.
#[derive(Debug)]
pub struct ConsoleStart {
    /// What is there already, perhaps nothing.
    pub chunk: ConsoleChunk,
    /// Whether the guest has ended, so that this answer holds the last of it.
    pub ended: bool,
}

impl ConsoleReader {
    /// Reads from offset `from`; with `follow`, on until the VM ends, the guest is elsewhere, the reader was overtaken,
    /// or for the time `idle` nothing came.
    pub async fn open(
        daemon: Arc<Daemon>,
        vm: Arc<Vm>,
        from: u64,
        follow: bool,
        idle: Option<Duration>,
    ) -> Result<(ConsoleStart, Self), DaemonError> {
        let follow = match follow {
            true => Some(Following { idle, _seat: vm.take_console_seat()? }),
            false => None,
        };
        let ended = vm.is_gone() && !daemon.has_left(&vm);
        let mut reader = Self { daemon, vm, from, follow };
        let chunk = reader.read(Duration::ZERO).await?;
        reader.from = chunk.from + chunk.bytes.len() as u64;
        Ok((ConsoleStart { chunk, ended }, reader))
    }

    /// The next bytes, which follow on those before, and the reader for what comes after them; nothing at the end.
    pub async fn next(mut self) -> Result<Option<(Vec<u8>, Self)>, DaemonError> {
        let idle = self.follow.as_ref().and_then(|following| following.idle);
        let deadline = idle.map(|idle| Instant::now() + idle);
        let mut left_now = false;
        loop {
            // What is asked before the reading holds for all that was written before.
            let over =
                left_now || self.vm.is_gone() || self.daemon.has_left(&self.vm) || self.follow.is_none();
            let left = deadline.map_or(WAIT, |deadline| deadline.saturating_duration_since(Instant::now()));
            let wait = if over { Duration::ZERO } else { left.min(WAIT) };
            let daemon = Arc::clone(&self.daemon);
            let vm = Arc::clone(&self.vm);
            let chunk = tokio::select! {
                chunk = self.read(wait) => chunk?,
                () = daemon.leaves(&vm), if !over => {
                    left_now = true;
                    continue;
                }
            };
            if chunk.from != self.from {
                return Ok(None);
            }
            if !chunk.bytes.is_empty() {
                self.from += chunk.bytes.len() as u64;
                return Ok(Some((chunk.bytes, self)));
            }
            if over || deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
        }
    }

    /// Reads from `self.from` on, waiting so long for the first byte.
    async fn read(&self, wait: Duration) -> Result<ConsoleChunk, DaemonError> {
        let vm = &self.vm;
        let client = match vm.client() {
            Ok(client) if !vm.is_gone() => client,
            _ => return self.left_behind(),
        };
        let request = Request::ConsoleRead {
            from: self.from,
            max: ConsoleChunk::MAX as u32,
            wait_ms: wait.as_millis() as u32,
        };
        match client.request_within(request, wait + ANSWER).await {
            Ok(Response::Console(chunk)) => Ok(chunk),
            Ok(_) => Err(vm.failed(ClientError::Unexpected("another answer than output"))),
            // It ended in between: its ring has the rest.
            Err(_) if vm.wait_gone(Duration::from_secs(1)).await => self.left_behind(),
            Err(e) => Err(vm.failed(e)),
        }
    }

    fn left_behind(&self) -> Result<ConsoleChunk, DaemonError> {
        match ConsoleFile::open(&self.vm.dir.console()) {
            Ok(ring) => ring.read(self.from, ConsoleChunk::MAX),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Ok(ConsoleChunk { from: self.from, bytes: Vec::new() })
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
