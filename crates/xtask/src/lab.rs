//! A machine of its own for what this host can't do: QEMU in software, with Debian's stock kernel and an emulated
//! AMD-V, in which KVM is the real one and boots real guests.
//!
//! Everything of it is below `lab` in the target folder: the root, out of Debian packages; what boots it; what its guests
//! boot; the programs that it shares with the host. [`Lab::ready`] makes what is missing or outdated.

mod guests;
mod image;
mod machine;
mod packages;
mod programs;
mod root;
mod run;
mod share;

use std::fs::{self, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};

use crate::test::packages as host_packages;
use crate::tree::Tree;

pub use run::{Ended, Job};
pub use share::{Access, Share};

/// What one can do with it.
#[derive(Subcommand)]
pub enum Task {
    /// Make it, or bring it up to date; the other commands do so, too.
    Setup,
    /// Run a command in it, as root. Gives its output and its exit code; 124 when its time is over, 125 when the
    /// lab itself failed.
    Run(RunArgs),
    /// Run in it those of its tests whose names contain one of these words, or all.
    Test {
        /// Parts of names.
        names: Vec<String>,
    },
    /// A shell in it, on this terminal; Ctrl-A x ends the machine.
    Shell(MachineArgs),
    /// Remove everything of it.
    Clean,
}

/// The machine.
#[derive(Args)]
pub struct MachineArgs {
    /// Its RAM in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    memory: u32,
    /// A folder of this host's in the lab: writable, unless `:ro` follows. The tag is any short name.
    #[arg(long = "share", value_name = "TAG:HOSTDIR:GUESTDIR[:ro]")]
    shares: Vec<Share>,
}

#[derive(Args)]
pub struct RunArgs {
    /// Seconds that the command may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    #[command(flatten)]
    machine: MachineArgs,
    /// The command and its arguments. `migrated` is on its path, as the host built it.
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

/// `cargo xtask lab`.
pub fn run(tree: &Tree, task: &Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Setup => {
            let lab = Lab::ready(tree)?;
            println!("the lab is ready in {}", lab.dir.display());
            Ok(ExitCode::SUCCESS)
        }
        Task::Run(RunArgs { timeout, machine, command }) => {
            let lab = Lab::ready(tree)?;
            programs::provide(&lab, tree)?;
            let job = Job {
                command: command.clone(),
                timeout: Duration::from_secs(*timeout),
                memory_mib: machine.memory,
                shares: machine.shares.clone(),
            };
            let mut stdout = std::io::stdout();
            let ended = lab.run(&job, |bytes| {
                stdout.write_all(bytes)?;
                stdout.flush()
            })?;
            if let Ended::Died { console } = &ended {
                eprintln!("the lab ended before the command did; its console's last lines:\n{console}");
            }
            Ok(ExitCode::from(ended.code()))
        }
        Task::Test { names } => {
            let well = crate::test::lab::run_some(tree, names)?;
            Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Task::Shell(machine) => {
            let lab = Lab::ready(tree)?;
            programs::provide(&lab, tree)?;
            lab.shell(machine.memory, &machine.shares)
        }
        Task::Clean => {
            let (dir, _lock) = locked(tree)?;
            // The lock's file stays: who waits for it must not end up with another one than who comes later.
            for part in [root::DIR, image::DIR, guests::DIR, programs::DIR, run::DIR] {
                remove(&dir.join(part))?;
            }
            for key in [root::KEY, guests::KEY, image::KEY] {
                remove(&dir.join(key))?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The lab, made and up to date. There is one a target folder, and whoever has it keeps others waiting.
pub struct Lab {
    dir: PathBuf,
    /// Version of the lab's own kernel.
    kernel: String,
    _lock: File,
}

impl Lab {
    /// Waits until nobody has it, then makes what is missing.
    pub fn ready(tree: &Tree) -> anyhow::Result<Self> {
        host_packages::provide()?;
        let (dir, lock) = locked(tree)?;
        let begun = Instant::now();
        let root_key = root::make(&dir)?;
        let kernels = root::Kernels::of(&dir.join(root::DIR))?;
        let image_key = image::make(&dir, &kernels, root_key)?;
        guests::make(&dir, tree, &kernels, image_key)?;
        if begun.elapsed() > Duration::from_secs(2) {
            eprintln!("the lab was made anew in {} s", begun.elapsed().as_secs());
        }
        Ok(Self { dir, kernel: kernels.generic, _lock: lock })
    }

    /// What its guests boot: a folder of kernels and initramfs.
    pub fn guests(&self) -> PathBuf {
        self.dir.join(guests::DIR)
    }

    fn root(&self) -> PathBuf {
        self.dir.join(root::DIR)
    }
}

/// The lab's folder, for who has the lock.
fn locked(tree: &Tree) -> anyhow::Result<(PathBuf, File)> {
    let dir = tree.target()?.join("lab");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let lock = File::create(dir.join("lock")).context("the lab's lock")?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("another process has the lab; waiting for it to end");
            lock.lock().context("the lab's lock")?;
        }
        Err(TryLockError::Error(error)) => return Err(error).context("the lab's lock"),
    }
    Ok((dir, lock))
}

/// Makes something unless it was made of the same parts before, which `key` remembers. Gives what sums the parts up.
fn made_once(key: &Path, parts: impl Hash, make: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<u64> {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    let sum = hasher.finish();
    if fs::read_to_string(key).ok().as_deref() != Some(&format!("{sum:016x}")) {
        // What a failure leaves half-made must not look like what was there before.
        remove(key)?;
        make()?;
        fs::write(key, format!("{sum:016x}")).with_context(|| key.display().to_string())?;
    }
    Ok(sum)
}

/// Removes a file or a folder, which need not be there.
fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

/// An empty folder.
fn emptied(path: &Path) -> anyhow::Result<()> {
    remove(path)?;
    fs::create_dir_all(path).with_context(|| path.display().to_string())
}

/// Runs a program of the host that must succeed, and gives its output.
fn output_of(command: &mut std::process::Command) -> anyhow::Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}
