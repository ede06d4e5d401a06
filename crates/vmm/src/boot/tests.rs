use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, BootPlan, load_pvh_file, load_workload};

const MIB: u64 = 1 << 20;
const CMDLINE: &str = "console=ttyS0";

fn memory(bytes: u64) -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap()
}

/// An ELF image of one segment of 4 KiB and, if there is an `entry`, the PVH note.
fn elf(load_at: u64, size_in_memory: u64, entry: Option<u64>) -> Vec<u8> {
    let mut image = vec![0; 0x2000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01"); // 64-bit, little endian
    put(16, &2u16.to_le_bytes()); // ET_EXEC
    put(18, &62u16.to_le_bytes()); // EM_X86_64
    put(20, &1u32.to_le_bytes());
    put(32, &64u64.to_le_bytes()); // program headers
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    let mut header = |at: usize, kind: u32, offset: u64, address: u64, file: u64, size: u64| {
        put(at, &kind.to_le_bytes());
        for (index, field) in [offset, address, address, file, size, 4].iter().enumerate() {
            put(at + 8 + index * 8, &field.to_le_bytes());
        }
    };
    header(64, 1, 0x1000, load_at, 0x1000, size_in_memory); // PT_LOAD
    header(120, 4, 0x200, 0, 24, 24); // PT_NOTE
    put(0x1000, b"kernel");
    for (index, word) in [4u32, 8, if entry.is_some() { 18 } else { 1 }].iter().enumerate() {
        put(0x200 + index * 4, &word.to_le_bytes());
    }
    put(0x20c, b"Xen\0");
    put(0x210, &entry.unwrap_or(0).to_le_bytes());
    image
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, data: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, data).unwrap();
        path
    }
}

fn load_image(bytes_of_ram: u64, image: &[u8]) -> Result<BootPlan, BootError> {
    let files = Files::new();
    load_pvh_file(&memory(bytes_of_ram), &files.write("kernel", image), None, CMDLINE, 1)
}

#[test]
fn a_kernel_and_its_initramfs_are_where_they_should_be() {
    let files = Files::new();
    let ram = [(GuestAddress(0), 16 << 20), (GuestAddress(4 << 30), 2 << 20)];
    let memory = GuestMemoryMmap::from_ranges(&ram).unwrap();
    let kernel = files.write("kernel", &elf(2 * MIB, 0x1000, Some(0x20_0010)));
    let initramfs = files.write("initramfs", &[7; 5000]);
    let plan = load_pvh_file(&memory, &kernel, Some(&initramfs), CMDLINE, 1).unwrap();
    assert_eq!((plan.entry, plan.ap_entry), (0x20_0010, None));
    assert!(plan.starts_running(0) && !plan.starts_running(1));
    let (regs, sregs) = (plan.regs(0), plan.sregs(Default::default()));
    assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x20_0010, plan.start_info, 2));
    assert_eq!((sregs.cr0 & 0x8000_0001, sregs.cs.db, sregs.cs.l), (1, 1, 0));

    let u32_at = |address| memory.read_obj::<u32>(GuestAddress(address)).unwrap();
    let u64_at = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
    let text_at = |address, length| {
        let mut text = vec![0; length];
        memory.read_slice(&mut text, GuestAddress(address)).unwrap();
        String::from_utf8(text).unwrap()
    };
    assert_eq!(text_at(2 * MIB, 6), "kernel");
    let info = plan.start_info;
    assert_eq!((u32_at(info), u32_at(info + 4), u32_at(info + 12)), (0x336e_c578, 1, 1));
    let modules = u64_at(info + 16);
    let (module, size) = (u64_at(modules), u64_at(modules + 8));
    assert_eq!((module, size), (16 * MIB - 0x2000, 5000));
    assert_eq!((u32_at(module), u32_at(module + 4996)), (0x0707_0707, 0x0707_0707));
    assert_eq!(text_at(u64_at(info + 24), CMDLINE.len() + 1), format!("{CMDLINE}\0"));
    let map: Vec<_> = (0..u64::from(u32_at(info + 48)))
        .map(|index| u64_at(info + 40) + index * 24)
        .map(|entry| (u64_at(entry), u64_at(entry + 8), u32_at(entry + 16)))
        .collect();
    let expected = [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (MIB, 15 * MIB, 1), (4 << 30, 2 * MIB, 1)];
    assert_eq!(map, expected);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let files = Files::new();
    for path in [Path::new("/nowhere/vmlinux"), files.0.path()] {
        let error = load_pvh_file(&memory(16 * MIB), path, None, "", 1).unwrap_err();
        assert!(matches!(&error, BootError::File { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    let kernel = files.write("kernel", &elf(2 * MIB, 0x1000, Some(2 * MIB)));
    let missing = files.0.path().join("initramfs");
    let error = load_pvh_file(&memory(16 * MIB), &kernel, Some(&missing), "", 1).unwrap_err();
    assert!(matches!(&error, BootError::File { path, .. } if path.ends_with("initramfs")), "{error}");
}

#[test]
fn what_is_no_pvh_kernel_is_refused() {
    let not_elf = |image: &[u8]| {
        let error = load_image(16 * MIB, image).unwrap_err();
        assert!(matches!(error, BootError::NotElf { .. }), "{error}");
    };
    not_elf(b"");
    not_elf(b"MZ and so on, as in a bzImage");
    let good = elf(2 * MIB, 0x1000, Some(2 * MIB));
    for cut in [10, 64, 100, 0x210, 0x1800] {
        not_elf(&good[..cut]);
    }
    for (at, value) in [(4, 1), (5, 2), (18, 3)] {
        let mut other = good.clone();
        other[at] = value; // 32-bit, big endian, i386
        not_elf(&other);
    }
    let error = load_image(16 * MIB, &elf(2 * MIB, 0x1000, None)).unwrap_err();
    assert!(matches!(error, BootError::NoPvhNote { .. }), "{error}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let too_large = |ram: u64, image: &[u8]| {
        let error = load_image(ram, image).unwrap_err();
        assert!(matches!(error, BootError::KernelTooLarge { .. }), "{error}");
    };
    too_large(2 * MIB, &elf(2 * MIB, 0x1000, Some(2 * MIB)));
    too_large(4 * MIB, &elf(2 * MIB, 2 * MIB + 1, Some(2 * MIB)));
    too_large(4 * MIB, &elf(2 * MIB, u64::MAX, Some(2 * MIB)));
    too_large(4 * MIB, &vec![0; 4 * MIB as usize + 1]);
    let overlapping = load_image(4 * MIB, &elf(0x7000, 0x1000, Some(0x7000))).unwrap_err();
    assert!(matches!(overlapping, BootError::Overlap { start: 0x7000, .. }), "{overlapping}");

    let files = Files::new();
    let kernel = files.write("kernel", &elf(2 * MIB, MIB, Some(2 * MIB)));
    for (size, fits) in [(MIB, true), (MIB + 1, false), (5 * MIB, false)] {
        let initramfs = files.write("initramfs", &vec![0; size as usize]);
        let loaded = load_pvh_file(&memory(4 * MIB), &kernel, Some(&initramfs), "", 1);
        match loaded {
            Ok(_) => assert!(fits, "{size}"),
            Err(error) => assert!(!fits && matches!(error, BootError::InitramfsTooLarge { .. }), "{error}"),
        }
    }
    let cmdline = |text: &str| load_pvh_file(&memory(4 * MIB), &kernel, None, text, 1);
    assert!(cmdline(&"a".repeat(2047)).is_ok());
    let error = cmdline(&"a".repeat(2048)).unwrap_err();
    assert!(matches!(error, BootError::CommandLineTooLong { length: 2048, .. }), "{error}");
    assert!(matches!(cmdline("a\0b"), Err(BootError::CommandLineNul)));
}

#[test]
fn a_refused_guest_leaves_memory_alone() {
    let ram = memory(16 * MIB);
    load_workload(&ram, "hot=16M", 1, 1_000_000).unwrap_err();
    load_workload(&ram, "hot=1M cold=1M", 1, 1_000_000).unwrap_err();
    load_workload(&ram, "hot=1M vcpus=1", 1, 1_000_000).unwrap_err();
    load_workload(&ram, "hot=1M", 65, 1_000_000).unwrap_err();
    let mut bytes = vec![0; 16 * MIB as usize];
    ram.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn all_vcpus_of_the_workload_guest_begin_at_one_place() {
    let plan = load_workload(&memory(16 * MIB), "hot=1M", 3, 1_000_000).unwrap();
    assert!((0..3).all(|vcpu| plan.starts_running(vcpu)));
    let regs = plan.regs(2);
    assert_eq!((regs.rip, regs.rbx, regs.rdi), (plan.entry, 0, 2));
    assert_eq!(plan.regs(0).rbx, plan.start_info);
}
