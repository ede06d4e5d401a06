//! `vm console`: the guest's serial port as one's own terminal, or in a pipe.
//!
//! Output comes over an answer that is held open, input goes in requests beside it. Both begin again by themselves at
//! the offset where they were, so a daemon may be restarted and the guest may move to another host meanwhile.

mod escape;
mod follow;
mod input;
mod terminal;

use std::io::{IsTerminal, Write};
use std::thread;

use anyhow::{Context, Result};
use clap::Args;
use migrated_api::Vm;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::client::{ApiClient, ApiClientError};
use escape::Escape;
use follow::Follower;
use terminal::RawTerminal;

/// Pieces of output that wait for standard output.
const OUTPUT_PIECES: usize = 8;

#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// Name or id of the VM.
    vm: String,
    /// Only read, and go on as output comes until the VM ends; with input from a pipe or file, also after its end.
    #[arg(long, short)]
    follow: bool,
    /// Only read what is there.
    #[arg(long, conflicts_with = "follow")]
    no_input: bool,
    /// Offset of the first byte of output [default: what comes from now on, on a terminal; else the oldest kept].
    #[arg(long)]
    from: Option<u64>,
    /// The key that ends an interactive console: `^X` for Ctrl-X, a character, or `none`.
    #[arg(long, value_name = "KEY", default_value = "^]")]
    escape: Escape,
    /// Send this line to the serial input and do nothing else.
    #[arg(long, value_name = "LINE", conflicts_with_all = ["follow", "from", "no_input"])]
    send: Option<String>,
}

/// What standard input is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A person types.
    Interactive,
    /// Something is piped in.
    Piped,
    /// Nothing.
    Unread,
}

pub async fn run(client: &ApiClient, args: ConsoleArgs) -> Result<()> {
    if let Some(line) = args.send {
        let path = format!("/v1/vms/{}/console", args.vm);
        return Ok(client.post_bytes(&path, format!("{line}\n").into_bytes()).await?);
    }
    let terminal = std::io::stdin().is_terminal();
    let mode = match terminal {
        true if !args.follow && !args.no_input => Mode::Interactive,
        false if !args.no_input => Mode::Piped,
        _ => Mode::Unread,
    };
    // By its id the guest is found also when it has moved.
    let (key, end) = match client.get::<Vm>(&format!("/v1/vms/{}", args.vm)).await {
        Ok(vm) => (vm.id, vm.console.end),
        Err(ApiClientError::Problem(problem)) if problem.code == "vm_not_found" => {
            (args.vm.clone(), u64::MAX)
        }
        Err(e) => return Err(e.into()),
    };
    let from = args.from.unwrap_or(if mode == Mode::Interactive { end } else { 0 });
    let follower = Follower::new(client.clone(), args.vm, key.clone(), from);
    match mode {
        Mode::Interactive => interactive(client, key, follower, args.escape).await,
        Mode::Piped => piped(client, key, follower, args.follow).await,
        Mode::Unread => read_only(follower, args.follow).await,
    }
}

async fn interactive(client: &ApiClient, key: String, mut follower: Follower, escape: Escape) -> Result<()> {
    let mut signals = Signals::new()?;
    let raw = RawTerminal::enter(std::io::stdin())?;
    follower.greet(escape);
    let (output, written) = stdout();
    let (typed, input) = mpsc::channel(input::PIECES);
    let detached = input::from_terminal(typed, escape);
    let sending = tokio::spawn(input::send(client.clone(), key, input));
    let ended = tokio::select! {
        ended = follower.follow(output) => {
            let ended = ended.and_then(|()| finish(written));
            follow::note("the guest has ended");
            ended
        }
        _ = detached => {
            follow::note("detached");
            Ok(())
        }
        () = signals.any() => Err(anyhow::anyhow!("told to end; the guest runs on")),
    };
    sending.abort();
    drop(raw);
    ended
}

async fn piped(client: &ApiClient, key: String, mut follower: Follower, follow: bool) -> Result<()> {
    let (output, written) = stdout();
    let (typed, input) = mpsc::channel(input::PIECES);
    input::from_pipe(typed);
    let sending = input::send(client.clone(), key, input);
    let meanwhile = tokio::select! {
        ended = follower.follow(output.clone()) => Some(ended),
        sent = sending => {
            sent?;
            None
        }
    };
    match meanwhile {
        Some(ended) => ended?,
        None if follow => follower.follow(output.clone()).await?,
        None => follower.read(output.clone()).await?,
    }
    drop(output);
    finish(written)
}

async fn read_only(mut follower: Follower, follow: bool) -> Result<()> {
    let (output, written) = stdout();
    if follow {
        follower.follow(output).await?;
    } else {
        follower.read(output).await?;
    }
    finish(written)
}

/// Where output goes: a thread of its own, so that a terminal that takes nothing holds up nothing else.
fn stdout() -> (mpsc::Sender<Vec<u8>>, thread::JoinHandle<std::io::Result<()>>) {
    let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(OUTPUT_PIECES);
    let writer = thread::spawn(move || {
        let mut stdout = std::io::stdout();
        while let Some(piece) = pieces.blocking_recv() {
            stdout.write_all(&piece)?;
            stdout.flush()?;
        }
        Ok(())
    });
    (sender, writer)
}

/// Waits until everything is written.
fn finish(written: thread::JoinHandle<std::io::Result<()>>) -> Result<()> {
    let written = written.join().map_err(|_| anyhow::anyhow!("writing the output failed"))?;
    written.context("can't write the output")
}

/// What ends a process that has a terminal to restore.
struct Signals([Signal; 4]);

impl Signals {
    fn new() -> Result<Self> {
        let kinds =
            [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit()];
        let [a, b, c, d] = kinds.map(signal);
        Ok(Self([a?, b?, c?, d?]))
    }

    async fn any(&mut self) {
        let [a, b, c, d] = &mut self.0;
        tokio::select! {
            _ = a.recv() => (),
            _ = b.recv() => (),
            _ = c.recv() => (),
            _ = d.recv() => (),
        }
    }
}
