//! A kernel that is not ours: a few instructions in an ELF file with the PVH note.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use migrated_api::{Verify, VmState};
use migrated_testkit::{require, wait_until};

use crate::host::{Host, PATIENCE};
use crate::lab::Lab;
use crate::record::assert_complete;

const LOAD: u32 = 0x20_0000;
const MIB: u64 = 1 << 20;

/// Prints the alphabet over and over, and counts the letters at 0x300000. 32-bit protected mode, no stack.
#[rustfmt::skip]
const CODE: [u8; 38] = [
    0x31, 0xdb,                         // xor ebx, ebx
    0x66, 0xba, 0xf8, 0x03,             // mov dx, 0x3f8
    0xb0, b'A',                         // mov al, 'A'
    0xee,                               // out dx, al
    0xfe, 0xc0,                         // inc al
    0x43,                               // inc ebx
    0x89, 0x1d, 0x00, 0x00, 0x30, 0x00, // mov [0x300000], ebx
    0x3c, b'Z' + 1,                     // cmp al, 'Z' + 1
    0x75, 0x02,                         // jne over the next
    0xb0, b'A',                         // mov al, 'A'
    0xb9, 0x40, 0x00, 0x00, 0x00,       // mov ecx, 64
    0x49,                               // dec ecx
    0x75, 0xfd,                         // jne back to the dec
    0x39, 0x1d, 0x00, 0x00, 0x30, 0x00, // cmp [0x300000], ebx
];
/// Goes on with the next letter while memory holds what was written, else stops.
const AGAIN: [u8; 3] = [0x74, 0xe0, 0xf4]; // je to the out; hlt

/// Prints that and breaks: an exception without a table to handle it.
const BREAKS: &str = "last words";

/// Prints a letter, waits for another, and ends: `r` resets the machine, `o` switches it off, any other crashes it.
#[rustfmt::skip]
const ENDS: [u8; 52] = [
    0x66, 0xba, 0xf8, 0x03,             // mov dx, 0x3f8
    0xb0, b'B',                         // mov al, 'B'
    0xee,                               // out dx, al
    0x66, 0xba, 0xfd, 0x03,             // mov dx, 0x3fd
    0xec,                               // in al, dx
    0xa8, 0x01,                         // test al, 1
    0x74, 0xfb,                         // jz to the in
    0x66, 0xba, 0xf8, 0x03,             // mov dx, 0x3f8
    0xec,                               // in al, dx
    0x3c, b'r',                         // cmp al, 'r'
    0x74, 0x06,                         // je reset
    0x3c, b'o',                         // cmp al, 'o'
    0x74, 0x0b,                         // je off
    0x0f, 0x0b,                         // ud2, without an IDT: a triple fault
    0x66, 0xba, 0x06, 0x06,             // reset: mov dx, 0x606
    0xb0, 0x01,                         // mov al, 1
    0xee,                               // out dx, al
    0xeb, 0xfe,                         // jmp here
    0x66, 0xba, 0x04, 0x06,             // off: mov dx, 0x604
    0x66, 0xb8, 0x00, 0x34,             // mov ax, 0x3400
    0x66, 0xef,                         // out dx, ax
    0xeb, 0xfe,                         // jmp here
];

/// The alphabet's kernel, taking `size` bytes of memory.
fn image(size: u64) -> Vec<u8> {
    image_of(&[&CODE[..], &AGAIN].concat(), size)
}

/// An ELF image of one segment with that code, taking `size` bytes of memory, and the PVH note.
pub fn image_of(code: &[u8], size: u64) -> Vec<u8> {
    let mut image = vec![0; 0x1000 + code.len()];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01"); // 64-bit, little endian
    put(16, &2u16.to_le_bytes()); // ET_EXEC
    put(18, &62u16.to_le_bytes()); // EM_X86_64
    put(20, &1u32.to_le_bytes());
    put(32, &64u64.to_le_bytes()); // where the program headers are, and how many of which size
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    let mut header = |at: usize, kind: u32, offset: u64, address: u64, file: u64, memory: u64| {
        put(at, &kind.to_le_bytes());
        for (index, field) in [offset, address, address, file, memory, 4].iter().enumerate() {
            put(at + 8 + index * 8, &field.to_le_bytes());
        }
    };
    let length = code.len() as u64;
    header(64, 1, 0x1000, LOAD.into(), length, size.max(length)); // PT_LOAD
    header(120, 4, 0x200, 0, 20, 20); // PT_NOTE
    for (index, word) in [4u32, 4, 18].iter().enumerate() {
        put(0x200 + index * 4, &word.to_le_bytes()); // XEN_ELFNOTE_PHYS32_ENTRY
    }
    put(0x20c, b"Xen\0");
    put(0x210, &LOAD.to_le_bytes());
    put(0x1000, code);
    image
}

pub fn file(lab: &Lab, name: &str, contents: &[u8]) -> PathBuf {
    let path = lab.root.path().join(name);
    std::fs::write(&path, contents).unwrap();
    path
}

fn console(host: &Host) -> Vec<u8> {
    host.run(&["vm", "console", "k"]).stdout
}

#[test]
fn a_kernel_that_is_not_ours_boots_and_moves() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    let kernel = file(&lab, "kernel", &image(0));
    let made =
        lab.a.cli(&["vm", "create", "--name", "k", "--memory", "32M", "--kernel", kernel.to_str().unwrap()]);
    assert_eq!(made["state"], "running");
    wait_until("the kernel prints", PATIENCE, || console(&lab.a).len() > 100);
    assert_eq!(lab.a.vm("k").workload, None);

    // Somebody reads along, wherever the guest is, until it has ended.
    let socket = format!("--host=unix:{}", lab.root.path().join("a/api.sock").display());
    let reader = thread::spawn(move || {
        let args = [&socket, "vm", "console", "k", "--follow"];
        std::process::Command::new(crate::host::MIGRATED).args(args).output().unwrap()
    });
    let record = lab.a.await_end(
        &lab.a.migrate("k", &serde_json::json!({ "to": "b", "verify": "before", "channels": 1 })).id,
    );
    assert_eq!(record.guest_gap_us, None, "this guest tells no gap");
    assert_complete(&record, Verify::Before);
    lab.b.await_end(&record.id);
    let before = lab.b.vm("k").console;
    assert_eq!(before.start, 0, "what it printed before is there as well");
    wait_until("the kernel goes on printing", PATIENCE, || lab.b.vm("k").console.end > before.end + 100);
    let all = console(&lab.b);
    assert!(is_alphabet(&all, b'A'), "a letter was lost or printed twice: {}", String::from_utf8_lossy(&all));
    assert_eq!((lab.b.vm("k").state, lab.a.find("k").map(|vm| vm.state)), (VmState::Running, None));
    lab.await_tidy();
    lab.b.cli(&["vm", "delete", "k"]);
    let said = reader.join().unwrap();
    let notes = String::from_utf8_lossy(&said.stderr);
    assert!(notes.contains("[k moved to b]"), "{notes}");
    assert!(said.stdout.len() >= all.len() && is_alphabet(&said.stdout, b'A'), "{notes}");
}

/// Whether these are the letters in their order, beginning with `first`.
fn is_alphabet(text: &[u8], first: u8) -> bool {
    text.iter()
        .enumerate()
        .all(|(at, letter)| usize::from(letter - b'A') == (usize::from(first - b'A') + at) % 26)
}

#[test]
fn a_kernel_larger_than_the_guest_leaves_nothing_behind() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    let wide = file(&lab, "wide", &image(64 * MIB));
    let long = file(&lab, "long", &{
        let mut image = image(0);
        image.resize(40 << 20, 0);
        image[64 + 32..64 + 48]
            .copy_from_slice(&[(39 * MIB).to_le_bytes(), (39 * MIB).to_le_bytes()].concat());
        image
    });
    for kernel in [wide, long] {
        let kernel = kernel.to_str().unwrap();
        let (code, detail) =
            lab.a.cli_refused(&["vm", "create", "--name", "k", "--memory", "32M", "--kernel", kernel]);
        assert!(code == "kernel_too_large" && detail.contains(kernel), "{code}: {detail}");
        lab.await_tidy();
        assert_eq!(lab.a.vm_dirs(), 0);
    }
}

#[test]
fn a_kernel_that_triple_faults_leaves_its_console_and_can_be_deleted() {
    require!(Kvm, Netns);
    let mut lab = Lab::new();
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    BREAKS.bytes().for_each(|letter| code.extend([0xb0, letter, 0xee])); // mov al, letter; out dx, al
    code.extend([0x0f, 0x0b]); // ud2
    let kernel = file(&lab, "breaks", &image_of(&code, 0));
    let kernel = kernel.to_str().unwrap();
    lab.a.cli(&["vm", "create", "--name", "k", "--memory", "32M", "--kernel", kernel]);
    wait_until("the crash", PATIENCE, || lab.a.vm("k").state == VmState::Crashed);
    // It is as crashed to a daemon that was not there then.
    for _ in 0..2 {
        let shown = lab.a.vm("k");
        assert_eq!(shown.state, VmState::Crashed);
        assert!(shown.error.as_ref().is_some_and(|why| why.contains("triple fault")), "{shown:?}");
        assert_eq!(console(&lab.a), BREAKS.as_bytes());
        lab.a.kill_daemon();
        lab.a.start_daemon();
    }
    let (_, why) = lab.a.cli_refused(&["migrate", "k", "--to", "b"]);
    assert!(why.contains("crashed"), "{why}");
    lab.a.cli(&["vm", "delete", "k"]);
    lab.await_tidy();
    assert_eq!((lab.a.vms(), lab.a.vm_dirs()), (Vec::new(), 0));
}

#[test]
fn guests_reset_switch_off_and_crash() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    let kernel = file(&lab, "kernel", &image_of(&ENDS, 0));
    let kernel = kernel.to_str().unwrap();
    let create = || lab.a.cli(&["vm", "create", "--name", "k", "--memory", "32M", "--kernel", kernel]);
    let send = |letter: &str| lab.a.run(&["vm", "console", "k", "--send", letter]);
    let said = |text: &[u8]| wait_until("the guest's letter", PATIENCE, || console(&lab.a) == text);
    let is = |state: VmState| wait_until("the guest's end", PATIENCE, || lab.a.vm("k").state == state);

    let made = create();
    said(b"B");
    let (code, _) = lab.a.cli_refused(&["vm", "shutdown", "k"]);
    assert_eq!(code, "power_button_ignored");
    let (code, detail) = lab.a.cli_refused(&["vm", "balloon", "k", "1M"]);
    assert!(code == "balloon_too_large" && detail.contains("at most 0"), "{code}: {detail}");
    let (code, _) = lab.a.cli_refused(&["vm", "balloon", "k", "0"]);
    assert_eq!(code, "balloon_without_driver");
    UnixStream::connect(made["agent_socket"].as_str().unwrap()).unwrap();
    send("r");
    // The same VM, on whose console the first boot is still to be read.
    said(b"BB");
    is(VmState::Running);
    let anew = lab.a.vm("k");
    assert_eq!(
        (made["id"].as_str(), made["pid"].as_u64() == anew.pid.map(u64::from)),
        (Some(&*anew.id), false)
    );
    // Its kernel is gone when it wants to boot again.
    std::fs::rename(kernel, format!("{kernel}.away")).unwrap();
    send("r");
    is(VmState::Stopped);
    let error = lab.a.vm("k").error.unwrap();
    assert!(error.contains("reset itself") && error.contains(kernel), "{error}");
    assert_eq!(console(&lab.a), b"BB");
    lab.a.cli(&["vm", "delete", "k"]);
    std::fs::rename(format!("{kernel}.away"), kernel).unwrap();

    create();
    said(b"B");
    send("o");
    is(VmState::Stopped);
    lab.a.cli(&["vm", "delete", "k"]);

    create();
    said(b"B");
    send("x");
    is(VmState::Crashed);
    let error = lab.a.vm("k").error.unwrap();
    assert!(error.contains("triple fault"), "{error}");
    assert_eq!(console(&lab.a), b"B");
    let (code, _) = lab.a.cli_refused(&["vm", "shutdown", "k"]);
    assert_eq!(code, "wrong_vm_state");
    let (code, detail) =
        lab.a.cli_refused(&["vm", "create", "--name", "n", "--vcpus", "300", "--kernel", kernel]);
    assert!(code == "invalid_request" && detail.contains("1 to 254"), "{code}: {detail}");
    lab.a.cli(&["vm", "delete", "k"]);
}
