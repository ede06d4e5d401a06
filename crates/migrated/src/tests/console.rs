//! A console over the API: as far as it goes on at one host, and at the host that the guest went to.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use migrated_api::{ConsoleHeaders, MigrationState};

use super::host::{Host, problem};
use crate::client::ApiClientError;
use crate::daemon::ConsoleReader;

/// Bytes that a fake VM's ring holds.
const RING: usize = 4096;

fn open(host: &Host, path: &str) -> Result<Response<Incoming>, ApiClientError> {
    host.call(host.client.open(path))
}

fn told(answer: &Response<Incoming>, header: &str) -> String {
    answer.headers()[header].to_str().unwrap().to_owned()
}

/// A console as far as it goes: host, offset, bytes.
fn read(host: &Host, vm: &str, from: u64) -> (String, u64, Vec<u8>) {
    let answer = open(host, &format!("/v1/vms/{vm}/console?from={from}")).unwrap();
    let (at, first) =
        (told(&answer, ConsoleHeaders::HOST), told(&answer, ConsoleHeaders::FROM).parse().unwrap());
    (at, first, host.call(answer.into_body().collect()).unwrap().to_bytes().to_vec())
}

fn send(host: &Host, vm: &str, bytes: &[u8]) -> Result<(), ApiClientError> {
    host.call(host.client.post_bytes(&format!("/v1/vms/{vm}/console"), bytes.to_vec()))
}

#[test]
fn a_reader_that_is_overtaken_is_told_how_much_it_missed_and_goes_on() {
    let host = Host::new("a");
    host.create("g", "").unwrap();
    let daemon = host.daemon.as_ref().unwrap();
    let vm = daemon.vm("g").unwrap();
    let opened = host.call(ConsoleReader::open(Arc::clone(daemon), vm, 0, true, None)).unwrap();
    let (start, reader) = opened;
    let seen = start.chunk.from + start.chunk.bytes.len() as u64;
    send(&host, "g", b"on time").unwrap();
    let (bytes, reader) = host.call(reader.next()).unwrap().unwrap();
    assert_eq!(bytes, b"on time");
    let seen = seen + bytes.len() as u64;
    // The guest does not wait for it.
    send(&host, "g", &vec![b'x'; 3 * RING]).unwrap();
    assert!(host.call(reader.next()).unwrap().is_none(), "an answer has no gap");
    let (_, first, bytes) = read(&host, "g", seen);
    assert_eq!((first - seen, bytes), (2 * RING as u64, vec![b'x'; RING]));
}

#[test]
fn readers_who_wait_leave_room_for_others() {
    let host = Host::new("a");
    host.create("g", "").unwrap();
    let follow = "/v1/vms/g/console?follow=true";
    let mut readers: Vec<_> = (0..16).map(|_| open(&host, follow).unwrap()).collect();
    assert_eq!(told(&readers[0], ConsoleHeaders::ENDED), "false");
    let refused = problem(open(&host, follow));
    assert_eq!((refused.status, refused.code.as_str()), (429, "too_many_readers"));
    assert!(host.vm("g").unwrap().error.is_none());
    read(&host, "g", 0);
    host.call(host.client.delete("/v1/vms/g")).unwrap();
    for reader in &mut readers {
        host.call(reader.body_mut().collect()).unwrap();
    }
}

#[test]
fn an_answer_ends_when_nothing_comes() {
    let host = Host::new("a");
    host.create("g", "").unwrap();
    let answer = open(&host, "/v1/vms/g/console?follow=true&idle_ms=1").unwrap();
    assert_eq!(told(&answer, ConsoleHeaders::ENDED), "false");
    let bytes = host.call(answer.into_body().collect()).unwrap().to_bytes();
    assert_eq!(bytes, "hello from the guest\n");
}

#[test]
fn a_guest_that_ended_leaves_its_output_and_says_so() {
    let host = Host::new("a");
    host.create("g", "").unwrap();
    host.kill_vm("g");
    host.wait_gone("g");
    let answer = open(&host, "/v1/vms/g/console?from=6&follow=true").unwrap();
    assert_eq!(told(&answer, ConsoleHeaders::ENDED), "true");
    assert_eq!(host.call(answer.into_body().collect()).unwrap().to_bytes(), "from the guest\n");
    assert_eq!(problem(send(&host, "g", b"x")).code, "wrong_vm_state");
}

#[test]
fn the_console_of_a_guest_that_moved_is_reached_through_the_host_that_it_left() {
    let (a, b, c) = (Host::new("a"), Host::new("b"), Host::new("c"));
    let vm = a.create("g", "").unwrap();
    for (from, to) in [(&a, &b), (&b, &c)] {
        let moved = from.migrate("g", to);
        from.wait(&moved.id, &[MigrationState::Completed]);
        to.wait(&moved.id, &[MigrationState::Completed]);
        from.wait_until_forgotten(&vm.id);
    }
    // By way of `b`.
    send(&a, &vm.id, b"typed").unwrap();
    let (at, first, bytes) = read(&a, &vm.id, 0);
    assert_eq!((at.as_str(), first), ("c", 0));
    assert!(bytes.ends_with(b"typed"), "{bytes:?}");
    assert_eq!(read(&c, "g", 0).2, bytes);
    // A name belongs to what is here.
    assert_eq!(problem(open(&a, "/v1/vms/g/console")).code, "vm_not_found");

    let moved = c.migrate("g", &a);
    c.wait(&moved.id, &[MigrationState::Completed]);
    a.wait(&moved.id, &[MigrationState::Completed]);
    c.wait_until_forgotten(&vm.id);
    for host in [&a, &b, &c] {
        assert_eq!(read(host, &vm.id, 0).0, "a");
    }
    let path = |hops| format!("/v1/vms/{}/console?hops={hops}", vm.id);
    let circling = problem(open(&b, &path(4)));
    assert_eq!((circling.status, circling.code.as_str()), (502, "guest_not_found"));
    assert_eq!(told(&open(&a, &path(4)).unwrap(), ConsoleHeaders::HOST), "a");

    a.call(a.client.delete("/v1/vms/g")).unwrap();
    assert_eq!(problem(open(&a, &path(0))).status, 404);
    let gone = problem(open(&c, &path(0)));
    assert_eq!((gone.status, gone.code.as_str()), (502, "vm_not_found"));
    assert_eq!(problem(send(&c, &vm.id, b"x")).code, "vm_not_found");
}

#[test]
fn questions_about_consoles_that_mean_nothing_are_refused() {
    let host = Host::new("a");
    host.create("g", "").unwrap();
    for query in ["from=-1", "from=99999999999999999999", "follow=1", "idle_ms=-1", "hops=256", "hop=1"] {
        let refused = problem(open(&host, &format!("/v1/vms/g/console?{query}")));
        assert_eq!((refused.status, refused.code.as_str()), (400, "invalid_query"), "{query}");
    }
    assert_eq!(read(&host, "g", u64::MAX).2, b"");
    let nobody = "0123456789abcdef0123456789abcdef";
    assert_eq!(problem(open(&host, &format!("/v1/vms/{nobody}/console"))).code, "vm_not_found");
}
