//! Standard input on its way to the guest's serial port.

use std::io::Read;
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use super::escape::Escape;
use super::follow::note;
use crate::client::{ApiClient, ApiClientError};

/// Bytes of a piece. One request takes it, so that the guest gets all of it or nothing.
const PIECE: usize = 4 << 10;
/// Pieces that may wait to be sent.
pub const PIECES: usize = 16;
/// Between attempts to send what the guest has no room for, or can't be given at the moment.
const RETRY: Duration = Duration::from_millis(100);
/// How long a guest may be unreachable.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads keys until the escape key, which the answer tells of. Reading goes on whatever becomes of them: what finds no
/// room is dropped, for the escape key must be heard.
pub fn from_terminal(typed: mpsc::Sender<Vec<u8>>, escape: Escape) -> oneshot::Receiver<()> {
    let (detached, is_detached) = oneshot::channel();
    // Not of the runtime's: nobody waits for its end, which needs one more key.
    thread::spawn(move || {
        read(|piece| {
            let (piece, over) = escape.split(piece);
            if !piece.is_empty() && typed.try_send(piece.to_vec()).is_err() {
                note("input dropped: the guest does not take it");
            }
            !over
        });
        // A terminal that was closed ends it as well. The console may have ended before.
        let _ = detached.send(());
    });
    is_detached
}

/// Reads until the end; as fast as the guest takes it.
pub fn from_pipe(typed: mpsc::Sender<Vec<u8>>) {
    thread::spawn(move || read(|piece| typed.blocking_send(piece.to_vec()).is_ok()));
}

/// Hands over what comes until the end, or until it is not wanted any more.
fn read(mut wanted: impl FnMut(&[u8]) -> bool) {
    let mut piece = [0; PIECE];
    let mut stdin = std::io::stdin().lock();
    loop {
        match stdin.read(&mut piece) {
            Ok(0) => return,
            Ok(length) if wanted(&piece[..length]) => {}
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Sends what comes, in its order, to the end of it. What the guest can't be given now is sent again, unless it may
/// have got it.
pub async fn send(client: ApiClient, key: String, mut input: mpsc::Receiver<Vec<u8>>) -> anyhow::Result<()> {
    let path = format!("/v1/vms/{key}/console");
    while let Some(piece) = input.recv().await {
        let mut since = None;
        while let Err(e) = client.post_bytes(&path, piece.clone()).await {
            match outlook(&e) {
                Outlook::Full => {}
                Outlook::Later if since.get_or_insert_with(Instant::now).elapsed() < PATIENCE => {}
                Outlook::Unknown => {
                    note(&format!("the guest may not have got {} bytes of input: {e}", piece.len()));
                    break;
                }
                Outlook::Later | Outlook::Never => return Err(e.into()),
            }
            sleep(RETRY).await;
        }
    }
    Ok(())
}

/// What a failure means for sending the same once more.
#[derive(Debug, PartialEq, Eq)]
enum Outlook {
    /// The guest has no room for it now. It may take any time to read.
    Full,
    /// It didn't get there, and may later.
    Later,
    /// It may have got there.
    Unknown,
    /// It won't get there.
    Never,
}

fn outlook(error: &ApiClientError) -> Outlook {
    match error {
        ApiClientError::Problem(problem) => match (problem.code.as_str(), problem.status) {
            ("console_input_full", _) => Outlook::Full,
            // Nobody who passed it on got an answer.
            ("peer_timed_out" | "peer_not_migrated", _) => Outlook::Unknown,
            // The guest is between two hosts, or the next daemon does not run.
            ("guest_moving" | "vm_starting", _) | (_, 502 | 503) => Outlook::Later,
            _ => Outlook::Never,
        },
        ApiClientError::Unreachable { .. } => Outlook::Later,
        ApiClientError::TimedOut { .. } | ApiClientError::NotOurs { .. } => Outlook::Unknown,
        ApiClientError::Tls { .. } => Outlook::Never,
    }
}
