use std::io::Stdin;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};

/// The terminal without echo, lines and signal keys: every key is the guest's. As it was before when this is dropped,
/// also by a panic.
pub struct RawTerminal {
    terminal: Stdin,
    before: Termios,
}

impl RawTerminal {
    pub fn enter(terminal: Stdin) -> Result<Self> {
        let before = tcgetattr(&terminal).context("can't ask the terminal for its modes")?;
        let mut raw = before.clone();
        raw.make_raw();
        // Not every guest ends its lines with a carriage return. One too many does no harm.
        raw.output_modes |= OutputModes::OPOST;
        set(&terminal, &raw).context("can't set the terminal's modes")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = set(&self.terminal, &self.before);
    }
}

/// At once: output that a stopped terminal never takes must not be waited for.
fn set(terminal: impl AsFd, modes: &Termios) -> rustix::io::Result<()> {
    loop {
        match tcsetattr(&terminal, OptionalActions::Now, modes) {
            Err(rustix::io::Errno::INTR) => {}
            done => return done,
        }
    }
}
