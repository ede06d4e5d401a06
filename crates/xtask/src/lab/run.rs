//! Commands and shells in the lab.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::{Access, Lab, Share, emptied, programs};

/// The folder, in the lab's, by which host and lab talk: what to do, and how it ended.
pub const DIR: &str = "control";
const INIT: &str = include_str!("../../lab/init.sh");

/// How long the machine may take besides the command: to boot, and to switch itself off.
const OVERHEAD: Duration = Duration::from_secs(90);
/// Time between two looks at whether it has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How much of a console is shown.
const TAIL_LINES: usize = 40;
/// The exit code of who ran out of time, as timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// The exit code when there is none of the command's.
const DIED: u8 = 125;

/// A command for the lab.
pub struct Job {
    /// Program and arguments.
    pub command: Vec<String>,
    /// How long it may take.
    pub timeout: Duration,
    /// The machine's RAM.
    pub memory_mib: u32,
    /// What the lab sees besides its programs.
    pub shares: Vec<Share>,
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself or, with 124, when its time was over.
    Code(u8),
    /// The machine ended first.
    Died {
        /// Its last words.
        console: String,
    },
}

impl Ended {
    pub fn code(&self) -> u8 {
        match self {
            Self::Code(code) => *code,
            Self::Died { .. } => DIED,
        }
    }

    pub fn is_timeout(&self) -> bool {
        *self == Self::Code(TIMED_OUT)
    }
}

impl Lab {
    /// Runs a command and gives `output` what it says, as it comes.
    pub fn run(
        &self,
        job: &Job,
        mut output: impl FnMut(&[u8]) -> io::Result<()> + Send,
    ) -> anyhow::Result<Ended> {
        let control = self.control(&job.shares)?;
        fs::write(control.join("command"), quoted(&job.command)).context("the lab's command")?;
        fs::write(control.join("timeout"), job.timeout.as_secs().to_string()).context("the lab's timeout")?;
        let (console, log) = (control.join("console"), control.join("qemu.log"));

        let mut qemu = self.machine(job.memory_mib, &control, &with_programs(self, &job.shares));
        qemu.arg("-serial").arg(format!("file:{}", console.display()));
        // A port of its own, since a serial line would be slow and the kernel's, too.
        qemu.args([
            "-device",
            "virtio-serial-pci",
            "-chardev",
            "file,id=output,path=/proc/self/fd/1,append=on",
        ]);
        qemu.args(["-device", "virtserialport,chardev=output,name=output"]);
        let log_file = File::create(&log).context("QEMU's log")?;
        let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file).spawn()?;
        let stdout = child.stdout.take().context("QEMU's output")?;
        thread::scope(|scope| {
            let copier = scope.spawn(move || copy(stdout, &mut output));
            await_end(&mut child, job.timeout + OVERHEAD)?;
            copier.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).context("the lab's output")
        })?;

        let code = fs::read_to_string(control.join("code")).ok();
        Ok(match code.and_then(|code| code.trim().parse().ok()) {
            Some(code) => Ended::Code(code),
            None => Ended::Died { console: tail(&console) + &tail(&log) },
        })
    }

    /// A shell on this terminal.
    pub fn shell(&self, memory_mib: u32, shares: &[Share]) -> anyhow::Result<ExitCode> {
        let control = self.control(shares)?;
        if let Ok(size) = rustix::termios::tcgetwinsize(io::stdin()) {
            let size = format!("rows {} columns {}\n", size.ws_row, size.ws_col);
            fs::write(control.join("size"), size).context("the terminal's size")?;
        }
        let log = control.join("qemu.log");
        let mut qemu = self.machine(memory_mib, &control, &with_programs(self, shares));
        qemu.args(["-serial", "mon:stdio"]).stderr(File::create(&log).context("QEMU's log")?);
        let status = qemu.status().context("QEMU")?;
        ensure!(status.success(), "QEMU failed: {}", tail(&log));
        Ok(ExitCode::SUCCESS)
    }

    /// The folder with the lab's orders, for a machine that has none yet.
    fn control(&self, shares: &[Share]) -> anyhow::Result<PathBuf> {
        let control = self.dir.join(DIR);
        emptied(&control)?;
        fs::write(control.join("init"), INIT).context("the lab's init")?;
        let line = |share: &Share| {
            let mode = if share.access == Access::ReadOnly { "ro" } else { "rw" };
            format!("{} {mode} {}\n", share.tag, share.lab)
        };
        let lines: String = with_programs(self, shares).iter().map(line).collect();
        fs::write(control.join("shares"), lines).context("the lab's shares")?;
        Ok(control)
    }
}

/// The shares of a machine.
fn with_programs(lab: &Lab, shares: &[Share]) -> Vec<Share> {
    let programs = Share {
        tag: "programs".into(),
        host: lab.dir.join(programs::DIR),
        lab: "/lab/bin".into(),
        access: Access::ReadOnly,
    };
    [&[programs], shares].concat()
}

fn copy(mut from: impl Read, to: &mut impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = [0; 1 << 16];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to(&buffer[..count])?,
        }
    }
}

/// Waits for the machine's end, and brings it about after so long.
fn await_end(child: &mut Child, patience: Duration) -> anyhow::Result<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill()?;
        }
        thread::sleep(LOOK);
    }
}

/// The last lines of a file, without what QEMU always says of processors that it can't emulate in full.
fn tail(file: &Path) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().filter(|line| !line.contains("TCG doesn't support")).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("{line}\n")).collect()
}

/// Words as a shell reads them.
fn quoted(words: &[String]) -> String {
    let quote = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    words.iter().map(quote).collect::<Vec<_>>().join(" ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_word_reaches_the_lab_as_it_is() {
        let words = ["printf", "%s|", "it's", "$HOME `x` \"y\"", "", "a\nb"].map(str::to_owned);
        let ran = std::process::Command::new("sh").args(["-c", &quoted(&words)]).output().unwrap();
        assert_eq!(String::from_utf8(ran.stdout).unwrap(), "it's|$HOME `x` \"y\"||a\nb|");
    }

    #[test]
    fn a_tail_leaves_out_what_qemu_always_says() {
        let file = std::env::temp_dir().join(format!("migrated-lab-tail-{}", std::process::id()));
        fs::write(&file, "warning: TCG doesn't support requested feature: x\nlast\n").unwrap();
        assert_eq!(tail(&file), "last\n");
        fs::remove_file(&file).unwrap();
        assert_eq!(tail(&file), "");
    }
}
