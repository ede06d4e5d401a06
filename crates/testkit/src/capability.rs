//! What a machine must have for a test to run: KVM, userfaultfd, network namespaces, Linux guests.
//!
//! A test that needs one begins with [`require!`](crate::require). The test then either runs or says
//! why it did not, on stderr and in the file that [`REPORT_ENV`] names. libtest swallows the output of
//! passing tests, so that file is how `cargo xtask test` learns that nothing was left out silently.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Environment variable that names the file to which each use and each skip is appended, a line each.
pub const REPORT_ENV: &str = "MIGRATED_TEST_CAPABILITIES";
/// Environment variable that names the folder with the kernels of the lab's guests, as `cargo xtask lab setup` makes it.
pub const LAB_GUEST_ENV: &str = "MIGRATED_LAB_GUEST";

/// Something of the host that some tests can't do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `/dev/kvm` can be opened for reading and writing.
    Kvm,
    /// `/dev/userfaultfd` can be opened for reading and writing.
    Userfaultfd,
    /// This process may make network namespaces, and iproute2 and nftables are there to configure them.
    Netns,
    /// Stock Linux kernels boot here as guests, and are there: the processor virtualizes, as the lab's does, and
    /// [`LAB_GUEST_ENV`] names them.
    Lab,
}

impl Capability {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Kvm, Self::Userfaultfd, Self::Netns, Self::Lab];

    /// The name in `USED(...)` and `SKIPPED(...)`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Userfaultfd => "userfaultfd",
            Self::Netns => "netns",
            Self::Lab => "lab",
        }
    }

    /// Whether the host has it; probed once a process.
    ///
    /// # Errors
    /// The reason why it can't be used.
    pub fn probe(self) -> Result<(), String> {
        static FOUND: [OnceLock<Result<(), String>>; 4] = [const { OnceLock::new() }; 4];
        FOUND[self as usize]
            .get_or_init(|| match self {
                Self::Kvm => opens("/dev/kvm"),
                Self::Userfaultfd => opens("/dev/userfaultfd"),
                Self::Netns => runs("ip", &["-V"])
                    .and_then(|()| runs("nft", &["--version"]))
                    .and_then(|()| runs("unshare", &["--net", "true"])),
                Self::Lab => virtualizes().and_then(|()| guests_are_there()),
            })
            .clone()
    }

    /// Whether the calling test can go on. Reports the use, or the skip and its reason.
    #[must_use = "a test that lacks a capability must return"]
    pub fn available_to_test(self) -> bool {
        let line = match self.probe() {
            Ok(()) => format!("USED({self})"),
            Err(reason) => format!("SKIPPED({self}): {reason}"),
        };
        report(&line);
        line.starts_with("USED")
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns from a test, with a `SKIPPED(...)` line, unless the host has all the named capabilities:
/// `require!(Kvm, Netns);`.
#[macro_export]
macro_rules! require {
    ($($capability:ident),+ $(,)?) => {
        $(if !$crate::capability::Capability::$capability.available_to_test() {
            return;
        })+
    };
}

fn opens(path: &str) -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{path}: {error}")),
    }
}

/// Whether this machine's processor runs guests by itself. A KVM without that emulates what guests' kernels do, and
/// not all of it.
fn virtualizes() -> Result<(), String> {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").map_err(|error| format!("/proc/cpuinfo: {error}"))?;
    match cpus.split_whitespace().any(|word| ["svm", "vmx"].contains(&word)) {
        true => Ok(()),
        false => {
            Err("the processor has neither SVM nor VMX; `cargo xtask test` runs this in the lab".to_owned())
        }
    }
}

fn guests_are_there() -> Result<(), String> {
    let Some(folder) = std::env::var_os(LAB_GUEST_ENV) else {
        return Err(format!(
            "{LAB_GUEST_ENV} must name what `cargo xtask lab setup` makes in target/lab/guest"
        ));
    };
    let kernel = std::path::Path::new(&folder).join("cloud/vmlinux");
    std::fs::metadata(&kernel).map(drop).map_err(|error| format!("{}: {error}", kernel.display()))
}

fn runs(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))
}

/// One `write` of a whole line in append mode: the lines of tests that run side by side don't mix.
fn report(line: &str) {
    eprintln!("{line}");
    let Some(path) = std::env::var_os(REPORT_ENV) else { return };
    let test = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(format!("{test}\t{line}\n").as_bytes()));
    if let Err(error) = written {
        panic!("{}: {error}: can't record {line}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_named_with_its_reason() {
        let reason = opens("/dev/no-such-device").unwrap_err();
        assert!(reason.starts_with("/dev/no-such-device: No such file"), "{reason}");
    }

    #[test]
    fn a_failing_probe_says_what_the_program_said() {
        let reason = runs("sh", &["-c", "echo not permitted >&2; exit 1"]).unwrap_err();
        assert_eq!(reason, "not permitted");
    }
}
