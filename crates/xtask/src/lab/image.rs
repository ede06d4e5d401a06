//! What boots: uncompressed kernels, and initramfs of busybox and some modules.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use super::root::Kernels;
use super::{emptied, made_once, output_of};

/// The folder of what boots the lab.
pub const DIR: &str = "boot";
/// What that was made of.
pub const KEY: &str = "boot.key";

const INIT: &str = include_str!("../../lab/initrd-init.sh");
/// What it takes to reach the root and to say what a command says.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];
/// What more its init gets: a source of randomness that isn't exhausted.
const RNG: [&str; 1] = ["virtio-rng"];
/// Folders of any initramfs.
const FOLDERS: [&str; 10] = ["bin", "modules", "proc", "sys", "dev", "ro", "rw", "new", "etc", "run"];

/// Makes what boots the lab unless it is there.
pub fn make(dir: &Path, kernels: &Kernels, root_key: u64) -> anyhow::Result<u64> {
    let out = dir.join(DIR);
    made_once(&dir.join(KEY), (root_key, kernels, INIT, MODULES, RNG, FOLDERS), || {
        emptied(&out)?;
        let root = dir.join(super::root::DIR);
        for kernel in [&kernels.cloud, &kernels.generic] {
            uncompress(&root.join(format!("boot/vmlinuz-{kernel}")), &out.join(format!("vmlinux-{kernel}")))?;
        }
        let modules = [&MODULES[..], &RNG[..]].concat();
        let kernel = kernels.generic.as_str();
        Initramfs { root: &root, kernel, modules: &modules, init: INIT, programs: &[] }
            .write(&out.join("initramfs"))
    })
}

/// Offsets and magic numbers of the kernel's boot protocol, Documentation/arch/x86/boot.rst.
const SETUP_SECTS: usize = 0x1f1;
const PAYLOAD: usize = 0x248;
const SECTOR: usize = 512;
/// First bytes of a payload, and what unpacks it.
const COMPRESSIONS: [(&[u8], &str); 4] = [
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x1f\x8b\x08", "gzip"),
];

/// Takes the ELF kernel out of a bzImage: nothing has to be unpacked at each boot then, slowly.
fn uncompress(image: &Path, out: &Path) -> anyhow::Result<()> {
    let data = fs::read(image).with_context(|| image.display().to_string())?;
    let (program, payload) = payload(&data).with_context(|| image.display().to_string())?;
    let file = fs::File::create(out).with_context(|| out.display().to_string())?;
    feed(Command::new(program).arg("-dcq").stdout(file), payload)?;
    let mut magic = [0; 4];
    std::io::Read::read_exact(&mut fs::File::open(out)?, &mut magic)?;
    ensure!(magic == *b"\x7fELF", "{}: not an ELF kernel inside", image.display());
    Ok(())
}

/// The compressed kernel in a bzImage, and the program that unpacks it.
fn payload(image: &[u8]) -> anyhow::Result<(&'static str, &[u8])> {
    let number = |at: usize| -> Option<usize> {
        Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize)
    };
    let payload = || {
        let setup = (usize::from(*image.get(SETUP_SECTS)?) + 1) * SECTOR;
        let begin = setup + number(PAYLOAD)?;
        // Its last four bytes are the length of what comes out.
        image.get(begin..(begin + number(PAYLOAD + 4)?).checked_sub(4)?)
    };
    let payload = payload().context("not a bzImage")?;
    let known = COMPRESSIONS.iter().find(|(magic, _)| payload.starts_with(magic));
    let (_, program) = known.context("an unknown compression")?;
    Ok((program, payload))
}

/// An initramfs: busybox, modules, an init, and some programs.
pub struct Initramfs<'a> {
    /// Where busybox and the modules are.
    pub root: &'a Path,
    /// Whose modules.
    pub kernel: &'a str,
    /// The modules' names; what they need comes as well. `/modules/order` lists all, first things first.
    pub modules: &'a [&'a str],
    /// The text of `/init`.
    pub init: &'a str,
    /// Static programs, by their names in `/bin`.
    pub programs: &'a [(&'a str, &'a Path)],
}

impl Initramfs<'_> {
    /// Writes it, uncompressed: it is small, and what unpacks it would be a machine in software.
    pub fn write(&self, out: &Path) -> anyhow::Result<()> {
        let tree = out.with_extension("tree");
        emptied(&tree)?;
        for folder in FOLDERS {
            fs::create_dir_all(tree.join(folder)).context(folder)?;
        }
        let programs = self.programs.iter().map(|(name, from)| (*name, from.to_path_buf()));
        for (name, from) in programs.chain([("busybox", self.root.join("bin/busybox"))]) {
            fs::copy(&from, tree.join("bin").join(name)).with_context(|| from.display().to_string())?;
        }
        self.add_modules(&tree.join("modules"))?;
        let init = tree.join("init");
        fs::write(&init, self.init).context("init")?;
        fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755)).context("init")?;
        pack(&tree, out)?;
        super::remove(&tree)
    }

    fn add_modules(&self, folder: &Path) -> anyhow::Result<()> {
        let mut order: Vec<String> = Vec::new();
        for module in self.modules {
            let shown = output_of(Command::new("modprobe").arg("-d").arg(self.root).args([
                "-S",
                self.kernel,
                "--show-depends",
                module,
            ]))?;
            // `insmod /path/name.ko.xz`, or `builtin name`.
            for file in String::from_utf8(shown)?.lines().filter_map(|line| line.strip_prefix("insmod ")) {
                let file = PathBuf::from(file.trim());
                let name = file.file_name().context("a module's name")?.to_string_lossy();
                let plain = name.trim_end_matches(".xz").to_owned();
                if order.contains(&plain) {
                    continue;
                }
                let bytes = match name.ends_with(".xz") {
                    true => output_of(Command::new("xz").arg("-dc").arg(&file))?,
                    false => fs::read(&file).with_context(|| file.display().to_string())?,
                };
                let out = folder.join(&plain);
                fs::write(&out, bytes).context("a module")?;
                output_of(Command::new("strip").arg("--strip-debug").arg(&out))?;
                order.push(plain);
            }
        }
        fs::write(folder.join("order"), order.join("\n") + "\n").context("the modules' order")
    }
}

/// All of a folder as a cpio archive.
fn pack(tree: &Path, out: &Path) -> anyhow::Result<()> {
    let mut names = vec![PathBuf::from(".")];
    let mut at = 0;
    while at < names.len() {
        let folder = tree.join(&names[at]);
        if folder.is_dir() {
            for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let name = names[at].join(entry?.file_name());
                names.push(name);
            }
        }
        at += 1;
    }
    let list: Vec<_> = names.iter().map(|name| format!("{}\n", name.display())).collect();
    let file = fs::File::create(out).with_context(|| out.display().to_string())?;
    let mut cpio = Command::new("cpio");
    cpio.args(["--create", "--format=newc", "--owner=0:0", "--quiet"]).current_dir(tree).stdout(file);
    feed(&mut cpio, list.concat().as_bytes())
}

/// Runs a program that reads `input` and must succeed.
fn feed(command: &mut Command, input: &[u8]) -> anyhow::Result<()> {
    let mut child = command.stdin(Stdio::piped()).spawn().with_context(|| format!("{command:?}"))?;
    let fed = child.stdin.take().context("its input")?.write_all(input);
    let status = child.wait()?;
    ensure!(status.success(), "{command:?} failed");
    fed.with_context(|| format!("{command:?} read not all of its input"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_payload_is_where_its_header_says() {
        let mut image = vec![0; 3 * SECTOR];
        image[SETUP_SECTS] = 1;
        image[PAYLOAD..PAYLOAD + 8].copy_from_slice(&[16, 0, 0, 0, 12, 0, 0, 0]);
        let begin = 2 * SECTOR + 16;
        image[begin..begin + 12].copy_from_slice(b"\x28\xb5\x2f\xfdkern\x01\0\0\0");
        assert_eq!(payload(&image).unwrap(), ("zstd", &b"\x28\xb5\x2f\xfdkern"[..]));

        image[begin] = 0;
        assert!(payload(&image).unwrap_err().to_string().contains("compression"));
        image[PAYLOAD + 7] = 0xff;
        assert!(payload(&image).unwrap_err().to_string().contains("not a bzImage"));
        assert!(payload(b"MZ").is_err());
    }
}
