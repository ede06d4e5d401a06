//! What any VM's specification must keep to, on any host.

use migrated_api::Reason;
use migrated_control::{BootSource, VmSpec};

use super::network;

const MIB: u64 = 1 << 20;
/// Less than this does not hold a kernel.
const MIN_MEMORY: u64 = 16 * MIB;
/// Memory comes in large pages.
const MEMORY_STEP: u64 = 2 * MIB;
/// Most bytes of a kernel command line: x86's COMMAND_LINE_SIZE is 2048.
const MAX_CMDLINE: usize = 2047;

/// Everything that is wrong with `spec`; nothing when it is right.
pub fn faults(spec: &VmSpec, max_vcpus: u32) -> Vec<Reason> {
    let mut faults = Vec::new();
    let mut fault = |wrong: bool, code: &str, detail: String| {
        if wrong {
            faults.push(Reason { code: code.into(), detail });
        }
    };
    fault(
        !is_name(&spec.name),
        "invalid_name",
        format!(
            "{:?} is no VM name: 1 to 64 letters, digits, `-`, `_`, `.`, not beginning with `.` or `-`, \
             and not 32 hex digits, which would be an id",
            spec.name
        ),
    );
    let memory = spec.memory_bytes;
    fault(
        memory < MIN_MEMORY || !memory.is_multiple_of(MEMORY_STEP),
        "invalid_memory",
        format!("memory_bytes is {memory}; it must be a multiple of 2 MiB and at least 16 MiB"),
    );
    fault(
        !(1..=max_vcpus).contains(&spec.vcpus),
        "invalid_vcpus",
        format!("vcpus is {}; a VM on this host has 1 to {max_vcpus}", spec.vcpus),
    );
    let cmdline = match &spec.boot {
        BootSource::Kernel { cmdline, .. } | BootSource::Workload { cmdline } => cmdline,
    };
    fault(
        cmdline.len() > MAX_CMDLINE || cmdline.contains('\0'),
        "invalid_cmdline",
        format!(
            "the command line has {} bytes; at most {MAX_CMDLINE} and no zero byte are possible",
            cmdline.len()
        ),
    );
    if let BootSource::Kernel { kernel, initramfs, .. } = &spec.boot {
        for path in [Some(kernel), initramfs.as_ref()].into_iter().flatten() {
            fault(
                !path.starts_with('/'),
                "invalid_path",
                format!("{path:?} must be an absolute path: the daemon's working directory is its own"),
            );
        }
    }
    faults.extend(network::faults(spec));
    faults
}

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=64).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with(['.', '-'])
        && !is_id(name)
}

/// Whether `text` is an id of a VM or migration: 32 hex digits in lower case.
pub fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> VmSpec {
        VmSpec {
            name: "db-7".into(),
            memory_bytes: 512 * MIB,
            vcpus: 2,
            boot: BootSource::Workload { cmdline: String::new() },
            backing: Default::default(),
            prefault: false,
            cpu_baseline: Default::default(),
            network: Vec::new(),
        }
    }

    fn codes(spec: &VmSpec) -> Vec<String> {
        faults(spec, 4).into_iter().map(|reason| reason.code).collect()
    }

    #[test]
    fn accepts_what_is_right_and_names_everything_that_is_wrong() {
        assert_eq!(codes(&spec()), Vec::<String>::new());
        let wrong = VmSpec { name: "a b".into(), memory_bytes: 0, vcpus: 5, ..spec() };
        assert_eq!(codes(&wrong), ["invalid_name", "invalid_memory", "invalid_vcpus"]);
    }

    #[test]
    fn names_are_no_paths_no_flags_and_no_ids() {
        for name in ["", ".", "..", "-x", "a/b", "a\0", "ü", &"n".repeat(65), &"0f".repeat(16)] {
            assert_eq!(codes(&VmSpec { name: name.into(), ..spec() }), ["invalid_name"], "{name:?}");
        }
        for name in ["a", "A.b_c-1", &"n".repeat(64), &"0F".repeat(16)] {
            assert_eq!(codes(&VmSpec { name: name.into(), ..spec() }), Vec::<String>::new(), "{name:?}");
        }
    }

    #[test]
    fn memory_is_whole_large_pages_and_enough_to_boot() {
        for memory_bytes in [0, 2 * MIB, 14 * MIB, 16 * MIB + 4096, 17 * MIB, 512 * MIB + 1, u64::MAX] {
            assert_eq!(codes(&VmSpec { memory_bytes, ..spec() }), ["invalid_memory"], "{memory_bytes}");
        }
        assert_eq!(codes(&VmSpec { memory_bytes: 16 * MIB, ..spec() }), Vec::<String>::new());
    }

    #[test]
    fn paths_are_absolute_and_command_lines_fit() {
        let boot = BootSource::Kernel {
            kernel: "vmlinux".into(),
            initramfs: Some("../initrd".into()),
            cmdline: "x".repeat(2048),
        };
        assert_eq!(codes(&VmSpec { boot, ..spec() }), ["invalid_cmdline", "invalid_path", "invalid_path"]);
    }
}
