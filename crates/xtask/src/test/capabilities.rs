//! What tests reported about the host, held against what the host has. A capability that is there must have
//! been used, and no test may have skipped for want of it: else a broken probe would make everything green.
//! That is why this looks for itself and doesn't ask the probes of `testkit`.

use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;

use super::lab;

/// The capabilities that some test of the workspace needs.
const NEEDED: [&str; 4] = ["kvm", "userfaultfd", "netns", "lab"];

/// Reports of all tests.
pub struct Reports {
    rows: Vec<Row>,
}

struct Row {
    capability: &'static str,
    found: bool,
    uses: u64,
    /// Test and reason.
    skips: Vec<(String, String)>,
}

impl Reports {
    /// Reads lines of `test<TAB>USED(capability)` and `test<TAB>SKIPPED(capability): reason`.
    pub fn read(text: &str) -> Self {
        Self::with_host(text, found)
    }

    fn with_host(text: &str, found: impl Fn(&str) -> bool) -> Self {
        let row = |capability: &'static str| {
            let used = format!("USED({capability})");
            let skipped = format!("SKIPPED({capability}): ");
            let lines = || text.lines().filter_map(|line| line.split_once('\t'));
            let skips = lines().filter_map(|(test, line)| {
                line.strip_prefix(&skipped).map(|reason| (test.to_owned(), reason.to_owned()))
            });
            Row {
                capability,
                found: found(capability),
                uses: lines().filter(|(_, line)| *line == used).count() as u64,
                skips: skips.collect(),
            }
        };
        Self { rows: NEEDED.map(row).into() }
    }

    /// Tests that returned early.
    pub fn skips(&self) -> u64 {
        self.rows.iter().map(|row| row.skips.len() as u64).sum()
    }

    /// Capabilities of this host that were left unused.
    pub fn breaches(&self) -> Vec<String> {
        let mut breaches = Vec::new();
        for Row { capability, found, uses, skips } in &self.rows {
            if *found && *uses == 0 {
                breaches.push(format!("this host has {capability}, and no test used it"));
            }
            for (test, reason) in skips.iter().filter(|_| *found) {
                breaches.push(format!("this host has {capability}, yet {test} was skipped: {reason}"));
            }
        }
        breaches
    }
}

impl fmt::Display for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Row { capability, found, uses, skips } in &self.rows {
            let found = if *found { "found" } else { "not found" };
            writeln!(
                f,
                "capability {capability}: {found}, used {uses} times, {} tests skipped",
                skips.len()
            )?;
            for (test, reason) in skips {
                writeln!(f, "  skipped {test}: {reason}")?;
            }
        }
        Ok(())
    }
}

/// Whether this host has it, for this user.
fn found(capability: &str) -> bool {
    let opens = |path| OpenOptions::new().read(true).write(true).open(path).is_ok();
    match capability {
        "kvm" => opens("/dev/kvm"),
        "userfaultfd" => opens("/dev/userfaultfd"),
        "netns" => is_root(),
        "lab" => lab::is_possible(),
        _ => false,
    }
}

/// Whether this process's effective user is root; only root can make network namespaces everywhere.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_capabilities_are_no_breach() {
        let reports = Reports::with_host(
            "a\tUSED(kvm)\nb\tUSED(kvm)\nc\tUSED(netns)\nd\tUSED(userfaultfd)\ne\tUSED(lab)\n",
            |_| true,
        );
        assert!(reports.breaches().is_empty());
        assert!(reports.to_string().starts_with("capability kvm: found, used 2 times, 0 tests skipped\n"));
    }

    #[test]
    fn a_skip_is_told_and_is_a_breach_only_where_the_capability_is_there() {
        let text = "a::b\tSKIPPED(kvm): /dev/kvm: Permission denied\nc\tUSED(netns)\nd\tUSED(userfaultfd)\ne\tUSED(lab)\n";
        let without = Reports::with_host(text, |capability| capability == "netns");
        assert!(without.breaches().is_empty());
        assert_eq!(without.skips(), 1);
        assert!(without.to_string().contains("  skipped a::b: /dev/kvm: Permission denied\n"));

        let with = Reports::with_host(text, |_| true);
        assert_eq!(with.breaches().len(), 2, "unused, and skipped: {:?}", with.breaches());
    }

    #[test]
    fn a_silent_run_is_a_breach_where_the_capability_is_there() {
        assert_eq!(Reports::with_host("", |capability| capability == "kvm").breaches().len(), 1);
        assert!(Reports::with_host("", |_| false).breaches().is_empty());
    }
}
