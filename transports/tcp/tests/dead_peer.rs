//! A peer whose host or cable is gone: nothing says so, and still every wait ends.
//!
//! The two ends run in two network namespaces. The test starts itself again in each of them, with the role in
//! the environment; the link between them is then cut without either end being told.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use migrated_tcp::TcpTransport;
use migrated_transport::{Endpoint, Gate, Incoming, MigrationGate, Transport, TransportError};
use migrated_wire::{ChannelRole, Hello, MigrationId, PROTOCOL, Token};

const ROLE: &str = "MIGRATED_TCP_DEAD_PEER_ROLE";
const MIGRATION: MigrationId = MigrationId([1; 16]);
const TOKEN: Token = Token([2; 32]);
const DESTINATION: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 97, 0, 2));
const PORT: u16 = 7001;
/// Several times what the product promises; without its socket options the waits last a quarter of an hour.
const FAR: Duration = Duration::from_secs(60);

#[test]
fn a_cut_link_ends_all_waits() {
    match std::env::var(ROLE).as_deref() {
        Ok("destination") => destination(),
        Ok(_) => source(),
        Err(_) => {
            migrated_testkit::require!(Netns);
            cut_the_link_between_two();
        }
    }
}

fn cut_the_link_between_two() {
    let here = Namespaces::new();
    let mut destination = here.start(&here.destination, "destination");
    says(&mut destination, "listening");
    let mut source = here.start(&here.source, "source");
    says(&mut source, "connected");
    // A cut in the middle: the links stay up, so that no end sees an error of its own interface.
    ip(&["netns", "exec", &here.source, "ip", "route", "replace", "blackhole", "10.97.0.2/32"]);
    ip(&["netns", "exec", &here.destination, "ip", "route", "replace", "blackhole", "10.97.0.1/32"]);
    for child in [&mut source, &mut destination] {
        assert!(child.wait().expect("a child").success(), "an end waited on");
    }
}

/// Reads what a child prints until a line ends with `word`.
fn says(child: &mut Child, word: &str) {
    let lines = BufReader::new(child.stdout.as_mut().expect("a pipe")).lines();
    let mut lines = lines.map(|line| line.expect("text"));
    assert!(lines.any(|line| line.ends_with(word)), "a child ended before it was {word}");
}

fn say(word: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{word}\n").as_bytes()).and_then(|()| out.flush()).expect("the test listens");
}

fn gate() -> Arc<dyn Gate> {
    Arc::new(MigrationGate::new(MIGRATION, TOKEN, |_| Ok(())))
}

fn destination() {
    let mut listener = TcpTransport::plain().listen(DESTINATION, PORT..=PORT, MIGRATION).expect("a port");
    say("listening");
    let mut accept = || listener.accept(&gate(), Instant::now() + FAR).expect("a channel");
    let Incoming::Control { sender, mut receiver, .. } = accept() else { panic!("data first") };
    let Incoming::Data { receiver: mut pages, .. } = accept() else { panic!("control twice") };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut frame = vec![0; 1 << 20];
            lost("reading pages", || pages.read_exact(&mut frame));
        });
        lost("waiting for a message", || receiver.recv(64, FAR).map(drop));
    });
    drop(sender);
}

fn source() {
    let endpoint = Endpoint { addr: (DESTINATION, PORT).into(), server_name: None };
    let hello = |role| Hello { versions: PROTOCOL, role, migration: MIGRATION, token: TOKEN };
    let (transport, deadline) = (TcpTransport::plain(), Instant::now() + FAR);
    let (sender, mut receiver, _) =
        transport.connect_control(&endpoint, &hello(ChannelRole::Control), deadline).expect("control");
    let mut pages =
        transport.connect_data(&endpoint, &hello(ChannelRole::Page(0)), deadline).expect("a page channel");
    say("connected");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let frame = vec![0; 1 << 20];
            lost("sending pages", || pages.send(&frame, &[]));
        });
        lost("waiting for a message", || receiver.recv(64, FAR).map(drop));
    });
    drop(sender);
}

/// Repeats `step` until it fails, which must be because the connection is lost.
fn lost(what: &str, mut step: impl FnMut() -> Result<(), TransportError>) {
    let mut last = Instant::now();
    let error = loop {
        match step() {
            Ok(()) => last = Instant::now(),
            Err(error) => break error,
        }
    };
    eprintln!("{what}: {error}, {:?} after the last progress", last.elapsed());
    assert!(matches!(error, TransportError::Lost { .. }), "{what}: {error}");
}

/// Two namespaces and a veth pair between them, gone with the value.
struct Namespaces {
    source: String,
    destination: String,
}

impl Namespaces {
    fn new() -> Self {
        let name = |end: &str| format!("migrated-tcp-{}-{end}", std::process::id());
        let here = Self { source: name("src"), destination: name("dst") };
        ip(&["netns", "add", &here.source]);
        ip(&["netns", "add", &here.destination]);
        let veth = ["type", "veth", "peer", "name", "veth0", "netns", &here.destination];
        ip(&[&["-n", &here.source, "link", "add", "veth0"][..], &veth].concat());
        for (namespace, address) in [(&here.source, "10.97.0.1/24"), (&here.destination, "10.97.0.2/24")] {
            ip(&["-n", namespace, "addr", "add", address, "dev", "veth0"]);
            ip(&["-n", namespace, "link", "set", "veth0", "up"]);
        }
        here
    }

    fn start(&self, namespace: &str, role: &str) -> Child {
        Command::new("ip")
            .args(["netns", "exec", namespace])
            .arg(std::env::current_exe().expect("this test's path"))
            .args(["--exact", "a_cut_link_ends_all_waits", "--nocapture"])
            .env(ROLE, role)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test starts itself")
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in [&self.source, &self.destination] {
            // What was not made can't be removed.
            let _ = Command::new("ip").args(["netns", "del", namespace]).stderr(Stdio::null()).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
