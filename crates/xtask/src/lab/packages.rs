//! What the lab is made of, and where it comes from.

use std::fs;
use std::path::PathBuf;

/// The lab's release of Debian.
pub const RELEASE: &str = "bookworm";
/// Where it comes from when this machine's own sources have no mirror of that release.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Packages, with the suite where it isn't the release itself. Both kernels are guests, too.
pub const PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "dash",
    "coreutils",
    "util-linux",
    "mount",
    "grep",
    "sed",
    "mawk",
    "findutils",
    "hostname",
    "tar",
    "gzip",
    "less",
    "busybox-static",
    "kmod",
    "procps",
    "strace",
    "socat",
    "netcat-openbsd",
    "python3-minimal",
    "iproute2",
    "iputils-ping",
    "iperf3",
    "ethtool",
    "tcpdump",
    "nftables",
    "rdma-core",
    "perftest",
    "ibverbs-utils",
    "ibverbs-providers",
    "rdmacm-utils",
    // Accepts the name of a package's suite after a slash, as apt does.
    "qemu-system-x86/bookworm-backports",
    "qemu-system-data/bookworm-backports",
    "qemu-system-common/bookworm-backports",
    "seabios/bookworm-backports",
    "qemu-utils/bookworm-backports",
    "linux-image-cloud-amd64",
    "linux-image-amd64/bookworm-backports",
];

/// Lines of a sources.list with the release, its updates and its backports.
pub fn sources() -> Vec<String> {
    let mirror = own_mirror().unwrap_or_else(|| MIRROR.to_owned());
    let suite = |suffix: &str| format!("deb {mirror} {RELEASE}{suffix} main");
    ["", "-updates", "-backports"].map(suite).into()
}

/// The mirror that this machine gets the release from, if it does.
fn own_mirror() -> Option<String> {
    let apt = PathBuf::from("/etc/apt");
    let listed = fs::read_dir(apt.join("sources.list.d")).into_iter().flatten().flatten();
    let files = [apt.join("sources.list")].into_iter().chain(listed.map(|entry| entry.path()));
    files.filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| mirror_in(&text))
}

/// The first mirror of the release in a file of apt's, in either of its formats.
fn mirror_in(text: &str) -> Option<String> {
    text.lines().find_map(mirror_in_line).or_else(|| text.split("\n\n").find_map(mirror_in_stanza))
}

/// `deb [options] URI suite component…`
fn mirror_in_line(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    (suite == RELEASE).then(|| uri.to_owned())
}

/// `URIs: …` and `Suites: …` of one source.
fn mirror_in_stanza(stanza: &str) -> Option<String> {
    let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name));
    let is_release = field("Suites:")?.split_whitespace().any(|suite| suite == RELEASE);
    if is_release { field("URIs:")?.split_whitespace().next().map(str::to_owned) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_of_sources_name_the_mirror() {
        let lines = "# deb http://no bookworm main\ndeb http://security bookworm-security main\n\
                     deb [signed-by=/a b] http://one/debian bookworm main contrib\n";
        assert_eq!(mirror_in(lines).as_deref(), Some("http://one/debian"));
        let stanzas = "Types: deb\nURIs: http://security\nSuites: bookworm-security\n\n\
                       Types: deb\n# a note\nURIs: http://two/debian http://three\nSuites: bookworm bookworm-updates\n";
        assert_eq!(mirror_in(stanzas).as_deref(), Some("http://two/debian"));
        assert_eq!(mirror_in("deb http://other trixie main\n"), None);
    }
}
