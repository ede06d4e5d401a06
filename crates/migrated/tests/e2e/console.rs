//! The serial console as a person or a script uses it, while daemons die and the guest moves.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;

use migrated_api::MigrationState;
use migrated_testkit::{require, wait_until};
use parking_lot::Mutex;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use serde_json::json;

use crate::host::{Host, PATIENCE};
use crate::kernel::{file, image_of};
use crate::lab::Lab;
use crate::netns::signal;

/// Answers each byte with itself. 32-bit protected mode, no stack, no interrupts.
#[rustfmt::skip]
const ECHO: [u8; 17] = [
    0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
    0xec,                   // in al, dx
    0xa8, 0x01,             // test al, 1
    0x74, 0xf7,             // jz back to the first
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xec,                   // in al, dx
    0xee,                   // out dx, al
    0xeb, 0xef,             // jmp back to the first
];

/// Writes 0, 1, 2 … 255, 0 … as fast as it can, out of 4 KiB of that at 0x300000.
#[rustfmt::skip]
const FLOOD: [u8; 38] = [
    0x66, 0xba, 0xf8, 0x03,       // mov dx, 0x3f8
    0xbf, 0x00, 0x00, 0x30, 0x00, // mov edi, 0x300000
    0xb9, 0x00, 0x10, 0x00, 0x00, // mov ecx, 4096
    0x30, 0xc0,                   // xor al, al
    0x88, 0x07,                   // mov [edi], al
    0x47,                         // inc edi
    0xfe, 0xc0,                   // inc al
    0x49,                         // dec ecx
    0x75, 0xf8,                   // jne back to the store
    0xbe, 0x00, 0x00, 0x30, 0x00, // mov esi, 0x300000
    0xb9, 0x00, 0x10, 0x00, 0x00, // mov ecx, 4096
    0xf3, 0x6e,                   // rep outsb
    0xeb, 0xf2,                   // jmp back to the mov esi
];

/// Bytes of output that a VM process keeps.
const RING: u64 = 256 << 10;

fn boot(lab: &Lab, code: &[u8]) {
    let kernel = file(lab, "kernel", &image_of(code, 0));
    lab.a.cli(&["vm", "create", "--name", "k", "--memory", "16M", "--kernel", kernel.to_str().unwrap()]);
}

#[track_caller]
fn migrate(from: &Host, to: &Host, mode: &str) {
    let begun = from.migrate("k", &json!({ "to": to.name, "mode": mode }));
    for host in [from, to] {
        let record = host.await_end(&begun.id);
        assert_eq!(record.state, Some(MigrationState::Completed), "{record:#?}");
    }
}

/// What a stream has said so far.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    fn by(mut stream: impl Read + Send + 'static) -> Self {
        let said = Self::default();
        let heard = said.clone();
        thread::spawn(move || {
            let mut piece = [0; 4096];
            // A terminal whose other side was closed is an error.
            while let Ok(length @ 1..) = stream.read(&mut piece) {
                heard.0.lock().extend(&piece[..length]);
            }
        });
        said
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }

    #[track_caller]
    fn wait(&self, text: &str) {
        wait_until(&format!("{text:?} after {:?}", self.text()), PATIENCE, || self.text().contains(text));
    }
}

/// A console on a terminal of its own.
struct Terminal {
    keys: File,
    shown: Said,
    notes: Said,
    console: Child,
    terminal: OwnedFd,
    before: Termios,
}

impl Terminal {
    fn attach(host: &Host, args: &[&str]) -> Self {
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keys).unwrap();
        unlockpt(&keys).unwrap();
        let name = ptsname(&keys, Vec::new()).unwrap().into_string().unwrap();
        let open = || OwnedFd::from(File::options().read(true).write(true).open(&name).unwrap());
        let terminal = open();
        let before = tcgetattr(&terminal).unwrap();
        let mut console = host
            .command(&[&["vm", "console", "k"], args].concat())
            .stdin(open())
            .stdout(open())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let notes = Said::by(console.stderr.take().unwrap());
        let keys = File::from(keys);
        let shown = Said::by(keys.try_clone().unwrap());
        let terminal = Self { keys, shown, notes, console, terminal, before };
        terminal.notes.wait("[console of k");
        assert!(!terminal.modes().local_modes.contains(LocalModes::ICANON));
        terminal
    }

    fn type_in(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.terminal).unwrap()
    }

    /// Waits for its end and checks that it left the terminal as it was.
    #[track_caller]
    fn await_end(&mut self) -> ExitStatus {
        wait_until("the console ends", PATIENCE, || self.console.try_wait().unwrap().is_some());
        let (now, before) = (self.modes(), &self.before);
        assert_eq!((now.local_modes, now.input_modes), (before.local_modes, before.input_modes));
        assert_eq!((now.output_modes, now.control_modes), (before.output_modes, before.control_modes));
        self.console.wait().unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Mostly it has ended.
        let _ = self.console.kill();
        let _ = self.console.wait();
    }
}

#[test]
fn a_terminal_follows_the_guest_to_other_hosts_and_back() {
    require!(Kvm, Netns, Userfaultfd);
    let mut lab = Lab::new();
    boot(&lab, &ECHO);
    let mut terminal = Terminal::attach(&lab.a, &["--from", "0"]);
    terminal.type_in("one ");
    terminal.shown.wait("one ");

    migrate(&lab.a, &lab.b, "precopy");
    terminal.notes.wait("[k moved to b]");
    terminal.type_in("two ");
    terminal.shown.wait("two ");

    // Its own daemon may go, though the guest is elsewhere.
    lab.a.kill_daemon();
    terminal.notes.wait("trying again]");
    terminal.type_in("three ");
    lab.a.start_daemon();
    terminal.notes.wait("[connected again]");
    terminal.shown.wait("three ");

    migrate(&lab.b, &lab.a, "postcopy");
    terminal.notes.wait("[k moved to a]");
    terminal.type_in("four ");
    terminal.shown.wait("four ");
    assert_eq!(terminal.shown.text(), "one two three four ", "{}", terminal.notes.text());
    assert!(!terminal.notes.text().contains("lost:"), "{}", terminal.notes.text());
    let kept = lab.a.run(&["vm", "console", "k"]);
    assert_eq!(String::from_utf8(kept.stdout).unwrap(), "one two three four ");

    // What is typed behind the key is nobody's.
    terminal.type_in("\x1dfive");
    assert!(terminal.await_end().success());
    assert_eq!(lab.a.vm("k").console.end, 19);
    lab.a.cli(&["vm", "delete", "k"]);
    lab.await_tidy();
}

#[test]
fn the_terminal_is_restored_whatever_ends_the_console() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    boot(&lab, &ECHO);
    for end in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut terminal = Terminal::attach(&lab.a, &[]);
        signal(terminal.console.id(), end);
        assert_eq!(terminal.await_end().code(), Some(1));
        terminal.notes.wait("the guest runs on");
    }
    // Signal keys are the guest's, and so is the usual key where another one is chosen.
    let mut other = Terminal::attach(&lab.a, &["--escape", "^A"]);
    other.type_in("\x03\x1a\x1d");
    other.shown.wait("\x03\x1a\x1d");
    other.type_in("\x01");
    assert!(other.await_end().success());

    let mut terminal = Terminal::attach(&lab.a, &[]);
    lab.a.cli(&["vm", "delete", "k"]);
    assert!(terminal.await_end().success());
    terminal.notes.wait("[the guest has ended]");
}

#[test]
fn a_pipe_gives_the_guest_as_much_as_it_takes_and_gets_all_of_the_answer() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    boot(&lab, &ECHO);
    // More than waits for the guest in its serial port.
    let typed: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    let mut console = lab
        .a
        .command(&["vm", "console", "k", "--follow"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let answer = Said::by(console.stdout.take().unwrap());
    let mut pipe = console.stdin.take().unwrap();
    let text = typed.clone();
    let writer = thread::spawn(move || pipe.write_all(&text).unwrap());
    wait_until("the whole answer", PATIENCE, || answer.0.lock().len() >= typed.len());
    writer.join().unwrap();
    lab.a.cli(&["vm", "delete", "k"]);
    assert!(console.wait().unwrap().success());
    assert!(*answer.0.lock() == typed, "the guest lost, repeated or garbled a byte");
}

#[test]
fn a_guest_that_pounds_its_serial_port_harms_nobody() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    boot(&lab, &FLOOD);
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", lab.a.daemon_pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    let before = resident();
    // Somebody follows and doesn't read on.
    let mut slow = lab
        .a
        .command(&["vm", "console", "k", "--follow"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let notes = Said::by(slow.stderr.take().unwrap());
    let mut output = slow.stdout.take().unwrap();
    let mut first = [0; 1];
    output.read_exact(&mut first).unwrap();
    wait_until("the guest has overwritten its beginning", PATIENCE, || lab.a.vm("k").console.end > 2 * RING);
    assert!(resident() < before + (32 << 20), "{before} and then {}", resident());

    // Another asks for what is gone, and is told how much that was.
    let late = lab.a.run(&["vm", "console", "k", "--no-input", "--from", "1"]);
    assert!(late.status.success());
    let lost = bytes_lost(&String::from_utf8(late.stderr).unwrap());
    assert!(lost >= RING && late.stdout.len() > 100, "{lost}");
    assert!(counts_up(&late.stdout, (1 + lost) as u8));

    // The slow one goes on, behind a gap unless sockets and pipes could hold it all.
    let heard = Said::by(output);
    wait_until("more than they can hold", PATIENCE, || heard.0.lock().len() as u64 > RING);
    lab.a.cli(&["vm", "delete", "k"]);
    assert!(slow.wait().unwrap().success());
    let heard = heard.0.lock();
    let gap = heard.windows(2).position(|pair| pair[1] != pair[0].wrapping_add(1));
    let (before, after) = heard.split_at(gap.map_or(heard.len(), |at| at + 1));
    let begin = first[0].wrapping_add(1);
    assert!(counts_up(before, begin));
    if gap.is_some() {
        let lost = bytes_lost(&notes.text());
        assert!(counts_up(after, (u64::from(begin) + before.len() as u64 + lost) as u8), "{lost}");
    }
}

/// What a reader was told that it missed.
fn bytes_lost(notes: &str) -> u64 {
    let told = notes
        .lines()
        .find(|line| line.contains("bytes of output are lost"))
        .unwrap_or_else(|| panic!("{notes}"));
    told.trim_start_matches('[').split(' ').next().unwrap().parse().unwrap()
}

/// Whether these are the numbers on from `first`.
fn counts_up(bytes: &[u8], first: u8) -> bool {
    bytes.iter().enumerate().all(|(at, byte)| *byte == first.wrapping_add(at as u8))
}
