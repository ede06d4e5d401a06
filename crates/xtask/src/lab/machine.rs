//! The machine: QEMU out of the lab's own root, so that the host needs none.

use std::path::Path;
use std::process::Command;

use super::{Access, Lab, Share, image, root};

/// An AMD processor without what QEMU's emulation lacks, but with SVM and nested paging, which it has.
const CPU: &str = "EPYC-v4,+svm,+npt";
/// With a second one QEMU's emulation of SVM is not sound: now and then an interrupt from the other CPU arrives right
/// behind VMRUN, where the global interrupt flag is clear and the guest's GS is loaded (the lab's kernel panics), or
/// in the guest (which ends in a triple fault). Seen with QEMU 7.2 and 10.0.
const CPUS: &str = "1";
/// As fast as it gets, quiet, and with a clock that isn't doubted because the machine is slow.
const KERNEL_WORDS: &str = "console=ttyS0 panic=-1 mitigations=off quiet no_timer_check tsc=reliable";

impl Lab {
    /// The machine, without a serial port. `control` is the folder by which it gets its orders.
    pub(super) fn machine(&self, memory_mib: u32, control: &Path, shares: &[Share]) -> Command {
        let root = self.root();
        let libraries = root.join("usr/lib/x86_64-linux-gnu");
        // Whatever ends this process ends the machine. QEMU runs under its own loader: another libc's would not do.
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "--"]);
        qemu.arg(libraries.join("ld-linux-x86-64.so.2")).arg("--library-path").arg(&libraries);
        qemu.arg(root.join("usr/bin/qemu-system-x86_64")).env("QEMU_MODULE_DIR", libraries.join("qemu"));
        for firmware in ["usr/share/qemu", "usr/share/seabios"] {
            qemu.arg("-L").arg(root.join(firmware));
        }
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", CPUS, "-machine", "q35"]);
        qemu.args(["-m", &memory_mib.to_string()]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        let boot = self.dir.join(image::DIR);
        qemu.arg("-kernel").arg(boot.join(format!("vmlinux-{}", self.kernel)));
        qemu.arg("-initrd").arg(boot.join("initramfs")).args(["-append", KERNEL_WORDS]);
        qemu.args([
            "-object",
            "rng-random,filename=/dev/urandom,id=rng",
            "-device",
            "virtio-rng-pci,rng=rng",
        ]);
        share(&mut qemu, root::DIR, &root, Access::ReadOnly);
        share(&mut qemu, "control", control, Access::ReadWrite);
        for Share { tag, host, access, .. } in shares {
            share(&mut qemu, tag, host, *access);
        }
        qemu
    }
}

fn share(qemu: &mut Command, tag: &str, host: &Path, access: Access) {
    // A comma in an option's value is written twice.
    let path = host.display().to_string().replace(',', ",,");
    let readonly = if access == Access::ReadOnly { "on" } else { "off" };
    let id = format!("share-{tag}");
    qemu.arg("-fsdev")
        .arg(format!("local,id={id},security_model=none,multidevs=remap,readonly={readonly},path={path}"));
    qemu.arg("-device").arg(format!("virtio-9p-pci,fsdev={id},mount_tag={tag}"));
}
