use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, BootPlan, BootProtocol, BzImageFault, load_kernel_file, load_workload};

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
    load_kernel_file(&memory(bytes_of_ram), &files.write("kernel", image), None, CMDLINE, 1)
}

#[test]
fn a_kernel_and_its_initramfs_are_where_they_should_be() {
    let files = Files::new();
    let ram = [(GuestAddress(0), 16 << 20), (GuestAddress(4 << 30), 2 << 20)];
    let memory = GuestMemoryMmap::from_ranges(&ram).unwrap();
    let kernel = files.write("kernel", &elf(2 * MIB, 0x1000, Some(0x20_0010)));
    let initramfs = files.write("initramfs", &[7; 5000]);
    let plan = load_kernel_file(&memory, &kernel, Some(&initramfs), CMDLINE, 1).unwrap();
    assert_eq!((plan.entry, plan.ap_entry), (0x20_0010, None));
    assert!(plan.starts_running(0) && !plan.starts_running(1));
    let (regs, sregs) = (plan.regs(0), plan.sregs(Default::default()));
    assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x20_0010, plan.info, 2));
    assert_eq!((sregs.cr0 & 0x8000_0001, sregs.cs.db, sregs.cs.l), (1, 1, 0));

    let u32_at = |address| memory.read_obj::<u32>(GuestAddress(address)).unwrap();
    let u64_at = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
    let text_at = |address, length| {
        let mut text = vec![0; length];
        memory.read_slice(&mut text, GuestAddress(address)).unwrap();
        String::from_utf8(text).unwrap()
    };
    assert_eq!(text_at(2 * MIB, 6), "kernel");
    let info = plan.info;
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
        let error = load_kernel_file(&memory(16 * MIB), path, None, "", 1).unwrap_err();
        assert!(matches!(&error, BootError::File { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    let kernel = files.write("kernel", &elf(2 * MIB, 0x1000, Some(2 * MIB)));
    let missing = files.0.path().join("initramfs");
    let error = load_kernel_file(&memory(16 * MIB), &kernel, Some(&missing), "", 1).unwrap_err();
    assert!(matches!(&error, BootError::File { path, .. } if path.ends_with("initramfs")), "{error}");
}

#[test]
fn what_is_no_pvh_kernel_is_refused() {
    let not_elf = |image: &[u8]| {
        let error = load_image(16 * MIB, image).unwrap_err();
        assert!(matches!(error, BootError::NotElf { .. }), "{error}");
    };
    let good = elf(2 * MIB, 0x1000, Some(2 * MIB));
    for cut in [4, 10, 64, 100, 0x210, 0x1800] {
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
fn what_is_no_kernel_at_all_is_refused() {
    for image in [&b""[..], b"#!/bin/sh", b"\x7fEL", b"MZ as in an EFI program", &[0; 4096]] {
        let error = load_image(16 * MIB, image).unwrap_err();
        assert!(matches!(error, BootError::NotKernel { .. }), "{error}");
    }
}

/// Where a bzImage's header has its fields (Documentation/arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

/// A bzImage of protocol 2.15 whose kernel proper is `kernel`, wants to be at 4 MiB and to have 2 MiB there.
fn bzimage(kernel: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 3 * 512];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(SETUP_SECTS, &[2]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(VERSION, &0x020fu16.to_le_bytes());
    put(LOADFLAGS, &[1]);
    put(INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
    put(CMDLINE_SIZE, &255u32.to_le_bytes());
    put(PREF_ADDRESS, &(4 * MIB).to_le_bytes());
    put(INIT_SIZE, &(2 * MIB as u32).to_le_bytes());
    image.extend(kernel);
    image
}

#[test]
fn a_bzimage_gets_its_boot_params() {
    let files = Files::new();
    let ram = [(GuestAddress(0), 16 << 20), (GuestAddress(4 << 30), 2 << 20)];
    let memory = GuestMemoryMmap::from_ranges(&ram).unwrap();
    let kernel = files.write("kernel", &bzimage(b"kernel proper"));
    let initramfs = files.write("initramfs", &[7; 5000]);
    let plan = load_kernel_file(&memory, &kernel, Some(&initramfs), CMDLINE, 2).unwrap();
    assert_eq!((plan.entry, plan.protocol), (4 * MIB, BootProtocol::Linux));
    let (regs, sregs) = (plan.regs(0), plan.sregs(Default::default()));
    assert_eq!((regs.rip, regs.rsi, regs.rbx, regs.rbp, regs.rdi), (4 * MIB, plan.info, 0, 0, 0));
    // __BOOT_CS and __BOOT_DS, and interrupts off.
    assert_eq!((sregs.cs.selector, sregs.ds.selector, sregs.ss.selector, regs.rflags), (0x10, 0x18, 0x18, 2));

    let mut text = [0; 13];
    memory.read_slice(&mut text, GuestAddress(4 * MIB)).unwrap();
    assert_eq!(&text, b"kernel proper");
    let mut params = [0; 4096];
    memory.read_slice(&mut params, GuestAddress(plan.info)).unwrap();
    let number = |at: usize, bytes: usize| {
        params[at..at + bytes].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    };
    assert_eq!(&params[0x202..0x206], b"HdrS");
    // type_of_loader, code32_start, sentinel
    assert_eq!((number(0x210, 1), number(0x214, 4), number(0x1ef, 1)), (0xff, 4 * MIB, 0));
    assert_eq!((number(0x218, 4), number(0x21c, 4)), (16 * MIB - 0x2000, 5000));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(number(0x218, 4))).unwrap(), 7);
    let mut cmdline = [0; CMDLINE.len() + 1];
    memory.read_slice(&mut cmdline, GuestAddress(number(0x228, 4))).unwrap();
    assert_eq!(&cmdline[..], format!("{CMDLINE}\0").as_bytes());
    assert_eq!(memory.read_obj::<u64>(GuestAddress(number(0x70, 8))).unwrap().to_le_bytes(), *b"RSD PTR ");
    let map: Vec<_> = (0..number(0x1e8, 1) as usize)
        .map(|index| 0x2d0 + index * 20)
        .map(|entry| (number(entry, 8), number(entry + 8, 8), number(entry + 16, 4)))
        .collect();
    let expected = [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (MIB, 15 * MIB, 1), (4 << 30, 2 * MIB, 1)];
    assert_eq!(map, expected);
}

#[test]
fn a_bzimage_that_cant_be_loaded_is_refused_with_the_reason() {
    let good = bzimage(b"kernel");
    let with = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        load_image(16 * MIB, &image).unwrap_err()
    };
    let reason = |error: BootError| match error {
        BootError::NotBzImage { reason, .. } => reason,
        other => panic!("{other}"),
    };
    assert_eq!(reason(with(0x202, b"hDRs")), BzImageFault::NoHeader);
    let old = with(VERSION, &0x0209u16.to_le_bytes());
    assert!(old.to_string().contains("2.09"), "{old}");
    assert_eq!(reason(old), BzImageFault::TooOld { version: 0x0209 });
    assert_eq!(reason(with(LOADFLAGS, &[0])), BzImageFault::LoadedLow);
    assert_eq!(reason(with(SETUP_SECTS, &[3])), BzImageFault::CutShort);
    for cut in [0x200, 0x210, 0x26b, 1024, 3 * 512] {
        assert_eq!(reason(load_image(16 * MIB, &good[..cut]).unwrap_err()), BzImageFault::CutShort, "{cut}");
    }
    let low = with(PREF_ADDRESS, &0x1_0000u64.to_le_bytes());
    assert!(matches!(low, BootError::Overlap { start: 0x1_0000, .. }), "{low}");
    for (at, value) in [(PREF_ADDRESS, 15 * MIB), (PREF_ADDRESS, 4 << 30), (PREF_ADDRESS, u64::MAX)] {
        let large = with(at, &value.to_le_bytes());
        assert!(matches!(large, BootError::KernelTooLarge { .. }), "{large}");
    }
    let large = with(INIT_SIZE, &(13 * MIB as u32).to_le_bytes());
    assert!(matches!(large, BootError::KernelTooLarge { .. }), "{large}");
}

#[test]
fn a_bzimage_says_what_it_takes() {
    let files = Files::new();
    let load = |image: &[u8], initramfs: usize, cmdline: usize| {
        let kernel = files.write("kernel", image);
        let initramfs = files.write("initramfs", &vec![0; initramfs]);
        load_kernel_file(&memory(8 * MIB), &kernel, Some(&initramfs), &"x".repeat(cmdline), 1)
    };
    // Behind its 2 MiB from 4 MiB on.
    let good = bzimage(b"kernel");
    load(&good, 2 << 20, 255).unwrap();
    let error = load(&good, (2 << 20) + 1, 255).unwrap_err();
    assert!(matches!(error, BootError::InitramfsTooLarge { .. }), "{error}");
    let error = load(&good, 1, 256).unwrap_err();
    assert!(matches!(error, BootError::CommandLineTooLong { length: 256, limit: 255 }), "{error}");
    let mut limited = good;
    limited[INITRD_ADDR_MAX..INITRD_ADDR_MAX + 4].copy_from_slice(&(7 * MIB as u32 - 1).to_le_bytes());
    load(&limited, 1 << 20, 1).unwrap();
    let error = load(&limited, (1 << 20) + 1, 1).unwrap_err();
    assert!(matches!(error, BootError::InitramfsTooLarge { .. }), "{error}");
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
        let loaded = load_kernel_file(&memory(4 * MIB), &kernel, Some(&initramfs), "", 1);
        match loaded {
            Ok(_) => assert!(fits, "{size}"),
            Err(error) => assert!(!fits && matches!(error, BootError::InitramfsTooLarge { .. }), "{error}"),
        }
    }
    let cmdline = |text: &str| load_kernel_file(&memory(4 * MIB), &kernel, None, text, 1);
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
    assert_eq!(plan.regs(0).rbx, plan.info);
}
