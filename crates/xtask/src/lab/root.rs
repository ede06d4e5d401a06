//! The lab's root: Debian packages, unpacked. No maintainer script ran, so what they would do and is needed is done here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

use super::packages::{PACKAGES, RELEASE, sources};
use super::{made_once, output_of, remove};
use crate::test::is_root;

/// Its folder in the lab's.
pub const DIR: &str = "root";
/// What it was made of.
pub const KEY: &str = "root.key";
/// Raised when what is done beside unpacking changes.
const REVISION: u32 = 1;

/// Folders for what is mounted in the lab, and those that programs expect.
const FOLDERS: [&str; 7] = ["proc", "sys", "dev", "tmp", "run", "root", "control"];
/// What maintainer scripts and the alternatives system would have linked.
const LINKS: [(&str, &str); 3] =
    [("usr/bin/sh", "dash"), ("usr/bin/awk", "mawk"), ("usr/bin/nc", "nc.openbsd")];
/// What they would have copied.
const COPIES: [(&str, &str); 2] = [
    ("usr/share/base-passwd/passwd.master", "etc/passwd"),
    ("usr/share/base-passwd/group.master", "etc/group"),
];
/// mmdebstrap's own way to have /bin in /usr.
const MERGED_USR: &str = "/usr/share/mmdebstrap/hooks/merged-usr/setup00.sh";

/// Makes the root unless it is there.
pub fn make(dir: &Path) -> anyhow::Result<u64> {
    made_once(&dir.join(KEY), (PACKAGES, FOLDERS, LINKS, COPIES, REVISION), || {
        ensure!(is_root(), "only root can unpack the lab's packages; run this once as root");
        eprintln!("unpacking the lab's Debian packages");
        let root = dir.join(DIR);
        remove(&root)?;
        unpack(&root)?;
        finish(&root)
    })
}

fn unpack(root: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=extract", "--quiet", "--aptopt=Apt::Install-Recommends \"false\""]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.arg(format!("--setup-hook={MERGED_USR}"));
    command.arg(RELEASE).arg(root).args(sources());
    output_of(&mut command).map(drop)
}

fn finish(root: &Path) -> anyhow::Result<()> {
    for folder in FOLDERS {
        fs::create_dir_all(root.join(folder)).context(folder)?;
    }
    for (link, to) in LINKS {
        remove(&root.join(link))?;
        symlink(to, root.join(link)).context(link)?;
    }
    for (from, to) in COPIES {
        fs::copy(root.join(from), root.join(to)).context(to)?;
    }
    fs::write(root.join("etc/hosts"), "127.0.0.1 localhost lab\n").context("etc/hosts")?;
    let kernels = Kernels::of(root)?;
    for kernel in [&kernels.cloud, &kernels.generic] {
        output_of(Command::new("depmod").arg("-b").arg(root).arg(kernel))?;
    }
    Ok(())
}

/// Versions of the kernels in the root.
#[derive(Hash)]
pub struct Kernels {
    /// Debian's for clouds: fewer drivers.
    pub cloud: String,
    /// Debian's for all machines, newer; the lab's own, too.
    pub generic: String,
}

impl Kernels {
    pub fn of(root: &Path) -> anyhow::Result<Self> {
        let boot = root.join("boot");
        let mut versions = Vec::new();
        for entry in fs::read_dir(&boot).with_context(|| boot.display().to_string())? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            versions.extend(name.strip_prefix("vmlinuz-").map(str::to_owned));
        }
        let find = |cloud: bool| {
            let found = versions.iter().find(|version| version.contains("cloud") == cloud);
            found.cloned().with_context(|| format!("{}: only kernels {versions:?}", boot.display()))
        };
        Ok(Self { cloud: find(true)?, generic: find(false)? })
    }
}
