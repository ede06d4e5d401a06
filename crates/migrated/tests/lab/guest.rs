use std::path::PathBuf;

use hyper::Method;
use migrated_testkit::capability::LAB_GUEST_ENV;
use migrated_testkit::wait_until;
use migrated_witness::READY;

use crate::host::{Host, PATIENCE};
use crate::network::BRIDGE;

/// A Debian kernel, as `xtask` provides it.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its folder.
    pub flavor: &'static str,
    /// `vmlinux`, or `vmlinuz` for the bzImage.
    pub image: &'static str,
}

/// A guest: a stock kernel with an initramfs that holds the witness.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    pub name: &'static str,
    pub kernel: Kernel,
    pub vcpus: u32,
}

/// A guest's address, and the hardware address of its interface.
pub const ADDRESS: &str = "10.0.0.2";
const MAC: &str = "52:54:00:12:34:56";

impl Guest {
    /// Makes it, with an interface on the host's bridge.
    pub fn create(self, host: &Host) {
        let net = format!("bridge={BRIDGE},mac={MAC}");
        let cmdline = format!("console=ttyS0 quiet panic=-1 lab.ip={ADDRESS}/24");
        self.create_with(host, &cmdline, &["--net", &net]);
    }

    /// Makes it with that command line and these further arguments.
    pub fn create_with(self, host: &Host, cmdline: &str, more: &[&str]) {
        let folder = PathBuf::from(std::env::var_os(LAB_GUEST_ENV).unwrap()).join(self.kernel.flavor);
        let path = |file: &str| folder.join(file).into_os_string().into_string().unwrap();
        let (kernel, initramfs) = (path(self.kernel.image), path("initramfs"));
        let vcpus = self.vcpus.to_string();
        let args = [
            &["vm", "create", "--name", self.name, "--memory", "256M", "--vcpus", &vcpus][..],
            &["--kernel", &kernel, "--initramfs", &initramfs, "--cmdline", cmdline],
            more,
        ];
        host.cli(&args.concat());
    }

    /// What its console has said on that host.
    pub fn console(self, host: &Host) -> String {
        let answer = host.api.get(&format!("/v1/vms/{}/console", self.name));
        assert_eq!(answer.status, 200, "{answer:?}");
        String::from_utf8_lossy(&answer.body).into_owned()
    }

    /// Types a line on its console.
    pub fn type_line(self, host: &Host, line: &str) {
        let path = format!("/v1/vms/{}/console", self.name);
        let answer = host.api.call(Method::POST, &path, format!("{line}\n").into_bytes()).unwrap();
        assert_eq!(answer.status, 204, "{answer:?}");
    }

    /// Waits until its console says that on that host.
    #[track_caller]
    pub fn await_console(self, host: &Host, text: &str) {
        let what = format!("the console of {} says {text:?}", self.name);
        let mut said = String::new();
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_until(&what, PATIENCE, || {
                said = self.console(host);
                said.contains(text)
            });
        }));
        if let Err(panic) = seen {
            eprintln!("--- console of {}\n{said}", self.name);
            std::panic::resume_unwind(panic);
        }
    }

    /// Waits until it has booted.
    #[track_caller]
    pub fn await_ready(self, host: &Host) {
        self.await_console(host, READY);
    }

    /// How often its kernel has complained since it booted or was asked last, on whatever host; its console has what about.
    #[track_caller]
    pub fn complaints(self, host: &Host) -> u32 {
        let known = self.console(host).len();
        self.type_line(host, "complaints");
        let mut counted = None;
        wait_until("the guest counts its complaints", PATIENCE, || {
            let said = self.console(host).split_off(known);
            counted = said.lines().find_map(|line| line.trim().strip_suffix(" complaints.")?.parse().ok());
            counted.is_some()
        });
        counted.unwrap()
    }

    /// Asserts that its kernel has had nothing to complain about since it booted or was asked last.
    #[track_caller]
    pub fn assert_content(self, host: &Host) {
        assert_eq!(self.complaints(host), 0, "{}", self.console(host));
    }
}
