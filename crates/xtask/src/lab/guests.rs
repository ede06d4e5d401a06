//! What the lab's guests boot: two stock kernels, each compressed and not, with an initramfs that holds a witness of
//! what a migration does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::image::{self, Initramfs};
use super::root::{self, Kernels};
use super::{emptied, made_once, output_of};
use crate::tree::Tree;

/// Its folder in the lab's.
pub const DIR: &str = "guest";
/// What it was made of.
pub const KEY: &str = "guest.key";

const INIT: &str = include_str!("../../lab/guest-init.sh");
/// Drivers of all devices that a VM can have.
const MODULES: [&str; 7] =
    ["virtio_pci", "virtio_net", "virtio-rng", "virtio_balloon", "virtio_console", "button", "evdev"];
const WITNESS: &str = "migrated-witness";

/// Makes the guests unless they are there. Each is a folder with `vmlinuz`, `vmlinux` and `initramfs`.
pub fn make(dir: &Path, tree: &Tree, kernels: &Kernels, image_key: u64) -> anyhow::Result<u64> {
    let witness = build_witness(tree)?;
    let bytes = fs::read(&witness).with_context(|| witness.display().to_string())?;
    made_once(&dir.join(KEY), (image_key, INIT, MODULES, &bytes), || {
        let (root, boot) = (dir.join(root::DIR), dir.join(image::DIR));
        let stripped = dir.join(WITNESS);
        output_of(Command::new("strip").arg("-o").arg(&stripped).arg(&witness))?;
        for (name, kernel) in [("cloud", &kernels.cloud), ("generic", &kernels.generic)] {
            let out = dir.join(DIR).join(name);
            emptied(&out)?;
            fs::hard_link(root.join(format!("boot/vmlinuz-{kernel}")), out.join("vmlinuz"))?;
            fs::hard_link(boot.join(format!("vmlinux-{kernel}")), out.join("vmlinux"))?;
            let programs = [(WITNESS, stripped.as_path())];
            Initramfs { root: &root, kernel, modules: &MODULES, init: INIT, programs: &programs }
                .write(&out.join("initramfs"))?;
        }
        super::remove(&stripped)
    })
}

/// Builds the witness without any library that it would have to find in a guest.
fn build_witness(tree: &Tree) -> anyhow::Result<PathBuf> {
    let status = tree
        .cargo()
        .args(["rustc", "--quiet", "--locked", "--package", WITNESS, "--bin", WITNESS])
        .args(["--", "-C", "target-feature=+crt-static"])
        .status()
        .context("cargo rustc")?;
    ensure!(status.success(), "{WITNESS} does not build, see above");
    Ok(tree.target()?.join("debug").join(WITNESS))
}
