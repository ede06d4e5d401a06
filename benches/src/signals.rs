//! A measurement that is interrupted leaves nothing behind.
//!
//! A signal kills what runs in the lab's namespaces, again and again until this program ends. So whatever the
//! program waits for fails, and it goes the way of every other failure: everything that it made is dropped.

use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::Result;
use migrated_netns::kill_everything_inside;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::report::say;

/// Exit code of a program that a signal ended, before the signal's number is added: a shell's convention.
const SIGNALLED: u8 = 128;
/// Time between two looks for what was started meanwhile.
const AGAIN: Duration = Duration::from_millis(50);

/// Number of the signal that came; 0 for none.
static CAME: AtomicU8 = AtomicU8::new(0);

/// Whether a signal came that ends the program.
#[must_use]
pub fn came() -> bool {
    CAME.load(Ordering::Relaxed) != 0
}

/// Runs a command, whose result says whether nothing was lost, and makes it an exit code.
pub fn run(command: impl FnOnce() -> Result<bool>) -> ExitCode {
    let ran = listen().map_err(Into::into).and_then(|()| command());
    match (CAME.load(Ordering::Relaxed), ran) {
        (0, Ok(true)) => ExitCode::SUCCESS,
        (0, Ok(false)) => ExitCode::FAILURE,
        (0, Err(error)) => {
            say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
        (number, _) => {
            say("ended by a signal; guests, daemons and namespaces are gone");
            ExitCode::from(SIGNALLED.saturating_add(number))
        }
    }
}

/// From here on a signal ends what runs in namespaces.
fn listen() -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let ends = {
        let _inside = runtime.enter();
        Ends {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        }
    };
    let wait = move || {
        CAME.store(runtime.block_on(ends.first()), Ordering::Relaxed);
        loop {
            kill_everything_inside();
            std::thread::sleep(AGAIN);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}

/// The signals that end a program.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Ends {
    /// The number of the first that comes.
    async fn first(mut self) -> u8 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hang_up.recv() => SignalKind::hangup(),
        };
        u8::try_from(kind.as_raw_value()).unwrap_or_default()
    }
}
