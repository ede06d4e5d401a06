//! Strangers at the ports: they cost a connection each and nothing else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use migrated_api::{PrepareIncoming, Prepared, Verify};
use migrated_testkit::{Rng, require};
use migrated_wire::{ChannelRole, Hello, HelloReply, MigrationId, RefusalCode, Token, VersionRange};
use serde_json::json;

use crate::client::Api;
use crate::guest::{Workload, assert_runs_only};
use crate::lab::{ADDRESSES, Lab, TOKEN};
use crate::record::assert_complete;
use crate::{netns, proxy};

const GUEST: Workload<'_> =
    Workload { name: "g", vcpus: 1, memory_mib: 32, parameters: "hot=4M rate=5000 content=random fill=8M" };
/// What a caller tries to get through in all.
const GARBAGE: usize = 1 << 30;
/// Connections that are tried for it: each is closed after its first bytes.
const CALLS: usize = 30;
/// Memory that this may cost a process for a while, in KiB.
const MAY_COST_KIB: u64 = 24 << 10;

/// The memory of their own that all processes of a host have, in KiB; guests' RAM is shared memory and not in it.
fn own_memory(host: &str) -> u64 {
    netns::pids(host).into_iter().map(own_memory_of).sum()
}

fn own_memory_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Sends garbage after `opening`, connection after connection; gives the bytes that the system took.
fn pour(to: SocketAddr, opening: &[u8], rng: &mut Rng) -> usize {
    let piece: Vec<u8> = (0..1 << 17).flat_map(|_| rng.next().to_le_bytes()).collect();
    let mut poured = 0;
    for _ in 0..CALLS {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(5)) else { continue };
        // One that keeps the connection and doesn't read counts as closed.
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        if stream.write_all(opening).is_err() {
            continue;
        }
        while poured < GARBAGE
            && let Ok(taken) = stream.write(&piece)
        {
            poured += taken;
        }
    }
    poured
}

/// Says hello as told, and gives the answer.
fn greet(to: SocketAddr, hello: &Hello) -> HelloReply {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(&hello.encode()).unwrap();
    let mut head = [0; HelloReply::HEAD_LEN];
    stream.read_exact(&mut head).unwrap();
    let mut text = vec![0; HelloReply::text_len(&head).unwrap()];
    stream.read_exact(&mut text).unwrap();
    HelloReply::decode(&head, &text).unwrap()
}

/// What strangers pour into a migration port: noise, another protocol, the beginnings of ours and of TLS.
fn pour_all(to: SocketAddr) -> usize {
    let mut rng = Rng::new(5);
    let openings: [&[u8]; 4] = [b"", b"GET / HTTP/1.1\r\n", b"MGRD", &[0x16, 3, 1, 0xff, 0xff]];
    openings.map(|opening| pour(to, opening, &mut rng)).iter().sum()
}

/// Those who speak our protocol, but an older one, or without the secret, are told so.
fn greet_wrongly(request: &PrepareIncoming, prepared: &Prepared) {
    let right = Hello {
        versions: VersionRange { min: request.protocol.min, max: request.protocol.max },
        role: ChannelRole::Control,
        migration: request.migration.parse().unwrap(),
        token: Token::from_hex(&prepared.token).unwrap(),
    };
    let refused = |hello: Hello| match greet(prepared.endpoints[0], &hello) {
        HelloReply::Refused(refusal) => refusal,
        accepted => panic!("{accepted:?}"),
    };
    let refusal = refused(Hello { versions: VersionRange { min: 0, max: 0 }, ..right });
    assert_eq!(refusal.code, RefusalCode::Version, "{refusal}");
    assert!(refusal.text.contains("version"), "{refusal}");
    for (migration, token) in [(right.migration, Token([7; 32])), (MigrationId([7; 16]), right.token)] {
        assert_eq!(refused(Hello { migration, token, ..right }).code, RefusalCode::Token);
    }
}

#[test]
fn garbage_at_the_migration_port_costs_little_and_the_source_still_comes() {
    require!(Kvm, Netns);
    let peer = |name: &str, port: u16| {
        let address = ADDRESSES[1];
        format!("[peers.{name}]\nurl = \"http://{address}:{port}\"\ntoken_file = \"{{root}}/token\"\n")
    };
    let lab = Lab::with(&(peer("tcp", 7001) + &peer("tls", 7002)), "");
    GUEST.create(&lab.a);
    for (name, port, transport) in [("tcp", 7001, "tcp"), ("tls", 7002, "tcp+tls")] {
        let (from, to) = (lab.a.netns.name().to_owned(), lab.b.netns.name().to_owned());
        let between = move |request: &PrepareIncoming, prepared: &Prepared| {
            let before = own_memory(&to);
            let poured = netns::enter(&from, || pour_all(prepared.endpoints[0]));
            if transport == "tcp" {
                netns::enter(&from, || greet_wrongly(request, prepared));
            }
            let after = own_memory(&to);
            eprintln!("{transport}: {} MiB poured; memory {before} KiB before, {after} after", poured >> 20);
            assert!(poured > 0 && after < before + MAY_COST_KIB, "{before} KiB became {after}");
        };
        let at = SocketAddr::new(ADDRESSES[1].parse().unwrap(), port);
        let api = Api::at(&lab.root.path().join("b/api.sock"));
        let proxy = proxy::start(&lab.b.netns, at, api, Box::new(between));
        let request = json!({ "to": name, "transport": transport, "verify": "before" });
        let record = lab.a.await_end(&lab.a.migrate("g", &request).id);
        proxy.join().unwrap();
        assert_complete(&record, Verify::Before);
        assert_runs_only("g", &lab.b, &lab.a);
        let back = lab.b.await_end(&lab.b.migrate("g", &json!({ "to": "a", "mode": "precopy" })).id);
        assert_complete(&back, Verify::Off);
        lab.a.await_end(&back.id);
    }
    lab.await_tidy();
}

/// What a caller of the API may try: noise, a head without end, and bodies without end.
fn pour_at_api(to: SocketAddr) -> usize {
    let post = format!("POST /v1/vms HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n");
    let mut rng = Rng::new(6);
    [
        String::new(),
        "GET / HTTP/1.1\r\nx: ".into(),
        format!("{post}content-type: application/json\r\ncontent-length: {GARBAGE}\r\n\r\n"),
        format!("{post}content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n40000000\r\n"),
        format!("POST /v1/vms HTTP/1.1\r\nhost: x\r\ncontent-length: {GARBAGE}\r\n\r\n"),
    ]
    .map(|opening| pour(to, opening.as_bytes(), &mut rng))
    .iter()
    .sum()
}

#[test]
fn garbage_at_the_api_costs_little_and_it_answers_on() {
    require!(Kvm, Netns);
    let lab = Lab::new();
    GUEST.create(&lab.a);
    let daemon = lab.b.daemon_pid();
    let before = own_memory(lab.b.netns.name());
    let to = lab.b.url.trim_start_matches("http://").parse().unwrap();
    let poured = lab.a.netns.enter(|| pour_at_api(to));
    let after = own_memory(lab.b.netns.name());
    eprintln!("{} MiB poured; memory {before} KiB before, {after} after", poured >> 20);
    assert!(poured > 0 && after < before + MAY_COST_KIB, "{before} KiB became {after}");
    assert_eq!((lab.b.netns.pids(), lab.b.vms().len()), (vec![daemon], 0));
    let record = lab.a.await_end(&lab.a.migrate("g", &json!({ "to": "b", "mode": "precopy" })).id);
    assert_complete(&record, Verify::Off);
    assert_runs_only("g", &lab.b, &lab.a);
}
