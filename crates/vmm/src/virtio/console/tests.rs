use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{Buffer, Driver, Interrupt, Ram};
use super::control::{AGENT, NAME};
use super::*;

/// Where the buffers of a queue lie: a page each.
const BUFFERS: u64 = 0x10_0000;
const PAGE: u64 = 4096;
const RAM: usize = 4 << 20;

fn place(queue: usize, n: usize) -> u64 {
    BUFFERS + (queue * 64 + n) as u64 * PAGE
}

/// A host's end: a directory with a socket.
struct Host {
    dir: TempDir,
}

impl Host {
    fn new() -> (Self, AgentConsole) {
        let dir = TempDir::new().unwrap();
        let console = AgentConsole::new(&dir.path().join("agent.sock")).unwrap();
        (Self { dir }, console)
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("agent.sock")).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }
}

/// A guest whose driver has made the agent's port, over `driver`.
struct Guest<'a> {
    ram: &'a Ram,
    driver: Driver<'a>,
    /// Buffers that were given in each queue.
    given: [usize; 6],
    /// And taken back.
    taken: [usize; 6],
}

impl<'a> Guest<'a> {
    fn new(ram: &'a Ram, console: &mut AgentConsole) -> Self {
        let driver = Driver::new(ram, console);
        let mut guest = Self { ram, driver, given: [0; 6], taken: [0; 6] };
        guest.offer(console, CONTROL_IN, 16);
        guest.tell(console, u32::MAX, 0, 1);
        assert_eq!(guest.heard(), [message(AGENT, 1, 1)], "PORT_ADD");
        guest.tell(console, AGENT, 3, 1);
        assert_eq!(guest.heard(), [[&message(AGENT, 7, 1)[..], NAME.as_bytes()].concat()], "PORT_NAME");
        guest
    }

    /// Gives the device buffers to write to.
    fn offer(&mut self, console: &mut AgentConsole, queue: usize, count: usize) {
        for _ in 0..count {
            let at = place(queue, self.given[queue] % 32);
            self.driver.give(queue, &[Buffer::Writable(at, PAGE as u32)]);
            self.given[queue] += 1;
        }
        self.driver.notify(console, queue).unwrap();
    }

    /// What the device wrote to a queue, by buffer.
    fn received(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let answers = self.driver.answers(queue);
        let read = |len: u32| {
            let mut bytes = vec![0; len as usize];
            let at = place(queue, self.taken[queue] % 32);
            self.taken[queue] += 1;
            self.ram.guest.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        answers.into_iter().map(read).collect()
    }

    fn heard(&mut self) -> Vec<Vec<u8>> {
        self.received(CONTROL_IN)
    }

    fn input(&mut self) -> Vec<u8> {
        self.received(AGENT_IN).concat()
    }

    fn tell(&mut self, console: &mut AgentConsole, id: u32, event: u16, value: u16) {
        self.write(CONTROL_OUT, &message(id, event, value));
        self.driver.notify(console, CONTROL_OUT).unwrap();
        assert_eq!(self.driver.answers(CONTROL_OUT), [0], "the driver spins until it is answered");
    }

    fn open(&mut self, console: &mut AgentConsole, open: bool) {
        self.tell(console, AGENT, 6, open.into());
    }

    /// Puts a request with these bytes into a queue.
    fn write(&mut self, queue: usize, bytes: &[u8]) {
        let at = place(queue, self.given[queue] % 64);
        self.ram.guest.memory().write_slice(bytes, GuestAddress(at)).unwrap();
        self.driver.give(queue, &[Buffer::Readable(at, bytes.len() as u32)]);
        self.given[queue] += 1;
    }

    fn say(&mut self, console: &mut AgentConsole, bytes: &[u8]) {
        self.write(AGENT_OUT, bytes);
        self.driver.notify(console, AGENT_OUT).unwrap();
    }
}

fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

fn opened(open: bool) -> Vec<u8> {
    message(AGENT, 6, open.into())
}

/// What has come to a client.
fn read(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    bytes
}

fn is_ended(stream: &mut UnixStream) -> bool {
    stream.read(&mut [0]).is_ok_and(|len| len == 0)
}

#[test]
fn the_guest_sees_a_client_come_and_go_and_bytes_pass_both_ways() {
    let (host, mut console) = Host::new();
    let ram = Ram::new(RAM);
    let mut guest = Guest::new(&ram, &mut console);
    guest.offer(&mut console, AGENT_IN, 8);
    guest.open(&mut console, true);
    let mut client = host.connect();
    guest.driver.host(&mut console);
    assert_eq!(guest.heard(), [opened(true)]);
    client.write_all(b"ping").unwrap();
    guest.driver.host(&mut console);
    assert_eq!(guest.input(), b"ping");
    guest.driver.interrupts();
    guest.say(&mut console, b"pong");
    assert_eq!((read(&mut client), guest.driver.answers(AGENT_OUT)), (b"pong".to_vec(), vec![0]));
    assert_eq!(guest.driver.interrupts(), [Interrupt::Queue(AGENT_OUT)]);
    drop(client);
    guest.driver.host(&mut console);
    assert_eq!(guest.heard(), [opened(false)]);
    guest.say(&mut console, b"anybody?");
    assert_eq!(guest.driver.answers(AGENT_OUT), [0], "nobody; the guest doesn't wait for one");
}

#[test]
fn one_client_at_a_time_each_with_a_conversation_of_its_own() {
    let (host, mut console) = Host::new();
    let ram = Ram::new(RAM);
    let mut guest = Guest::new(&ram, &mut console);
    guest.open(&mut console, true);
    let (mut first, mut second) = (host.connect(), host.connect());
    first.write_all(b"one").unwrap();
    second.write_all(b"two").unwrap();
    guest.driver.host(&mut console);
    drop(first);
    guest.driver.host(&mut console);
    assert_eq!(guest.heard(), [opened(true)], "the guest has not read all yet");
    guest.offer(&mut console, AGENT_IN, 1);
    assert_eq!((guest.input(), guest.heard()), (b"one".to_vec(), vec![opened(false)]));
    guest.say(&mut console, b"for the first");
    guest.driver.host(&mut console);
    assert_eq!(guest.heard(), [opened(true)]);
    guest.offer(&mut console, AGENT_IN, 1);
    assert_eq!((guest.input(), read(&mut second)), (b"two".to_vec(), vec![]));
}

#[test]
fn who_has_nothing_more_to_say_still_hears_the_answer() {
    let (host, mut console) = Host::new();
    let ram = Ram::new(RAM);
    let mut guest = Guest::new(&ram, &mut console);
    guest.offer(&mut console, AGENT_IN, 1);
    guest.open(&mut console, true);
    let mut client = host.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    guest.driver.host(&mut console);
    assert_eq!((guest.input(), guest.heard()), (b"question".to_vec(), vec![opened(true)]));
    guest.say(&mut console, b"answer");
    assert_eq!(read(&mut client), b"answer");
    assert!(!guest.driver.host_once(&mut console), "nothing calls again and again");
    drop(client);
    guest.driver.host(&mut console);
    assert_eq!(guest.heard(), [opened(false)]);
}

#[test]
fn what_the_guest_says_waits_for_a_slow_client_and_nothing_is_lost() {
    let (host, mut console) = Host::new();
    let ram = Ram::new(RAM);
    let mut guest = Guest::new(&ram, &mut console);
    guest.open(&mut console, true);
    let mut client = host.connect();
    guest.driver.host(&mut console);
    let (mut said, mut heard, mut answered) = (Vec::<u8>::new(), Vec::<u8>::new(), 0);
    // More than a socket holds, a full queue at a time.
    for round in 0..16u8 {
        for n in 0..64u8 {
            let bytes: Vec<u8> = (0..PAGE).map(|at| (at as u8).wrapping_mul(n) ^ round).collect();
            said.extend(&bytes);
            guest.write(AGENT_OUT, &bytes);
        }
        while guest.driver.notify(&mut console, AGENT_OUT).unwrap() == Served::More {}
        let waits = guest.driver.answers(AGENT_OUT).len();
        answered += waits;
        assert!(round == 0 || waits < 64, "the client has not read anything yet");
        while answered < (usize::from(round) + 1) * 64 {
            let piece = read(&mut client);
            assert!(!piece.is_empty(), "it stands still");
            heard.extend(piece);
            guest.driver.host(&mut console);
            answered += guest.driver.answers(AGENT_OUT).len();
        }
    }
    heard.extend(read(&mut client));
    assert!(heard == said);
}

#[test]
fn a_client_that_leaves_full_lets_the_guest_go_on() {
    let (host, mut console) = Host::new();
    let ram = Ram::new(RAM);
    let mut guest = Guest::new(&ram, &mut console);
    guest.open(&mut console, true);
    let client = host.connect();
    guest.driver.host(&mut console);
    let mut unanswered = 0;
    while unanswered == 0 {
        (0..64).for_each(|_| guest.write(AGENT_OUT, &[1; PAGE as usize]));
        while guest.driver.notify(&mut console, AGENT_OUT).unwrap() == Served::More {}
        unanswered = 64 - guest.driver.answers(AGENT_OUT).len();
    }
    drop(client);
    let mut next = host.connect();
    guest.driver.host(&mut console);
    assert_eq!(guest.driver.answers(AGENT_OUT).len(), unanswered);
    assert_eq!(guest.heard(), [opened(true), opened(false), opened(true)]);
    assert!(read(&mut next).is_empty(), "nothing of what was for another");
}

#[test]
fn what_a_client_sends_waits_for_the_guest_in_bounds_and_in_order() {
    let (host, mut console) = Host::new();
    let ram = Ram::new(RAM);
    let mut guest = Guest::new(&ram, &mut console);
    let mut client = host.connect();
    let sent: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
    let mut to_send = &sent[..];
    let mut send = |client: &mut UnixStream| {
        while let Ok(len) = client.write(to_send)
            && len > 0
        {
            to_send = &to_send[len..];
        }
    };
    send(&mut client);
    guest.driver.host(&mut console);
    assert_eq!(console.input.len(), 0, "no program has the port open");
    guest.open(&mut console, true);
    assert_eq!(console.input.len(), ROOM);
    guest.driver.host(&mut console);
    assert_eq!(console.input.len(), ROOM);
    let mut received = Vec::new();
    while received.len() < sent.len() {
        send(&mut client);
        guest.driver.host(&mut console);
        guest.offer(&mut console, AGENT_IN, 8);
        let piece = guest.input();
        assert!(!piece.is_empty(), "it stands still");
        received.extend(piece);
    }
    assert!(received == sent);
}

#[test]
fn a_client_that_leaves_while_no_program_is_there_makes_room_for_the_next() {
    let (host, mut console) = Host::new();
    let ram = Ram::new(RAM);
    let mut guest = Guest::new(&ram, &mut console);
    guest.offer(&mut console, AGENT_IN, 4);
    for _ in 0..3 {
        let mut client = host.connect();
        client.write_all(b"is anybody there?").unwrap();
        guest.driver.host(&mut console);
        drop(client);
        guest.driver.host(&mut console);
        assert_eq!(guest.heard(), [opened(true), opened(false)]);
    }
    guest.open(&mut console, true);
    assert!(guest.input().is_empty());
}

#[test]
fn bytes_on_their_way_arrive_with_the_guest_then_the_port_closes_and_opens_again() {
    let (host, mut console) = Host::new();
    let ram = Ram::new(RAM);
    let mut guest = Guest::new(&ram, &mut console);
    guest.open(&mut console, true);
    let mut client = host.connect();
    client.write_all(b"half a request").unwrap();
    guest.driver.host(&mut console);
    assert_eq!(guest.heard(), [opened(true)]);
    guest.write(AGENT_OUT, b"half an answer");
    let state = console.save();

    let (there, mut arrived) = Host::new();
    let mut next = there.connect();
    let other = Ram::new(RAM);
    arrived.restore(&state).unwrap();
    assert_eq!(arrived.save(), state);
    let driver = guest.driver.moved(&other, &mut arrived);
    let mut guest = Guest { ram: &other, driver, given: guest.given, taken: guest.taken };
    drop(console);
    assert!(is_ended(&mut client));
    guest.driver.arrive(&mut arrived);
    guest.driver.host(&mut arrived);
    assert!(guest.heard().is_empty(), "it has yet to read the first client's bytes");
    assert_eq!(guest.driver.answers(AGENT_OUT), [0], "the first client is not here");
    guest.offer(&mut arrived, AGENT_IN, 2);
    guest.driver.host(&mut arrived);
    assert_eq!(
        (guest.input(), guest.heard()),
        (b"half a request".to_vec(), vec![opened(false), opened(true)])
    );
    guest.say(&mut arrived, b"hello");
    assert_eq!(read(&mut next), b"hello");
}

#[test]
fn a_reset_ends_the_conversation_and_a_driver_may_begin_anew() {
    let (host, mut console) = Host::new();
    let ram = Ram::new(RAM);
    let mut guest = Guest::new(&ram, &mut console);
    guest.open(&mut console, true);
    let mut client = host.connect();
    client.write_all(b"?").unwrap();
    guest.driver.host(&mut console);
    console.reset();
    assert!(is_ended(&mut client));
    assert_eq!((console.port, console.input.len()), (Port::default(), 0));
    let mut watched = Vec::new();
    console.watched(&mut watched);
    assert!(watched.is_empty(), "clients wait for a driver");
    let again = Ram::new(RAM);
    Guest::new(&again, &mut console);
}

#[test]
fn a_driver_without_multiport_talks_to_nobody() {
    let (_host, mut console) = Host::new();
    let ram = Ram::new(RAM);
    let mut driver = Driver::new(&ram, &mut console);
    console.activate(0);
    driver.give(PORT0_OUT, &[Buffer::Readable(BUFFERS, 100)]);
    driver.give(CONTROL_IN, &[Buffer::Writable(BUFFERS, 100)]);
    (0..6).for_each(|queue| assert_eq!(driver.notify(&mut console, queue).unwrap(), Served::All));
    driver.arrive(&mut console);
    assert_eq!((driver.answers(PORT0_OUT), driver.answers(CONTROL_IN)), (vec![0], vec![]));
    let mut config = [0xff; 16];
    console.read_config(0, &mut config);
    assert_eq!(config, [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn every_write_to_the_guest_is_marked() {
    let (host, mut console) = Host::new();
    let ram = Ram::new(RAM);
    let mut guest = Guest::new(&ram, &mut console);
    guest.offer(&mut console, AGENT_IN, 2);
    guest.open(&mut console, true);
    ram.written();
    let mut before = vec![0; RAM];
    ram.guest.memory().read_slice(&mut before, GuestAddress(0)).unwrap();
    let mut client = host.connect();
    client.write_all(&[0x5a; 6000]).unwrap();
    guest.driver.host(&mut console);
    let mut after = vec![0; RAM];
    ram.guest.memory().read_slice(&mut after, GuestAddress(0)).unwrap();
    let changed: Vec<u64> = (0..)
        .zip(before.chunks(4096).zip(after.chunks(4096)))
        .filter_map(|(page, (before, after))| (before != after).then_some(page))
        .collect();
    let written = ram.written();
    assert!(changed.len() >= 4, "two buffers, a message and rings: {changed:?}");
    assert!(changed.iter().all(|page| written.contains(page)), "{changed:?} but {written:?}");
}

#[test]
fn states_that_no_source_gives_are_refused() {
    let (_host, mut console) = Host::new();
    let state = |len| encode(&State { port: Port::default(), input: vec![0; len] });
    console.restore(&state(ROOM)).unwrap();
    let refusal = console.restore(&state(ROOM + 1)).unwrap_err();
    assert!(refusal.contains("65537 bytes wait"), "{refusal}");
    assert!(console.restore(&[]).is_err());
    assert!(console.restore(&[&state(3)[..], &[0]].concat()).is_err());
}

fn any_buffer() -> impl Strategy<Value = Buffer> {
    let at = prop_oneof![0u64..2 << 20, any::<u64>()];
    let len = prop_oneof![0u32..16 << 10, any::<u32>()];
    (at, len, any::<bool>()).prop_map(|(at, len, writable)| {
        if writable { Buffer::Writable(at, len) } else { Buffer::Readable(at, len) }
    })
}

fn any_message() -> impl Strategy<Value = Vec<u8>> {
    (prop_oneof![0u32..3, any::<u32>()], 0u16..9, 0u16..3)
        .prop_map(|(id, event, value)| message(id, event, value))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_driver_breaks_it(
        steps in prop::collection::vec(
            (0usize..6, prop::collection::vec(any_buffer(), 1..4), any_message(), any::<u8>()), 1..24),
        noise in prop::collection::vec((0x1_0000u64..0x1_c000, any::<u64>()), 0..16),
    ) {
        let (host, mut console) = Host::new();
        let ram = Ram::new(RAM);
        let mut driver = Driver::new(&ram, &mut console);
        let mut clients = Vec::new();
        for (queue, buffers, message, what) in steps {
            let at = BUFFERS;
            if what & 1 == 1 {
                ram.guest.memory().write_slice(&message, GuestAddress(at)).unwrap();
                driver.give(CONTROL_OUT, &[Buffer::Readable(at, message.len() as u32)]);
            }
            driver.give(queue, &buffers);
            if what & 6 == 6 {
                noise.iter().for_each(|(at, value)| {
                    ram.guest.memory().write_obj(*value, GuestAddress(*at)).unwrap();
                });
            }
            if what & 8 == 8 {
                let mut client = host.connect();
                let _ = client.write(&message);
                clients.push(client);
            }
            if what & 0x30 == 0x30 {
                clients.pop();
            }
            // A device that was broken is served no more; here it is, and must bear it.
            let broken = (0..6).any(|queue| driver.notify(&mut console, queue).is_err());
            if !broken {
                let mut watched = Vec::new();
                console.watched(&mut watched);
                prop_assert!(watched.len() <= 1);
            }
            prop_assert!(console.input.len() <= ROOM);
            let state = console.save();
            prop_assert!(state.len() <= ROOM + 16);
            let (_host, mut other) = Host::new();
            prop_assert_eq!(other.restore(&state), Ok(()));
        }
    }

    #[test]
    fn no_state_breaks_it(data in prop::collection::vec(any::<u8>(), 0..64)) {
        let (_host, mut console) = Host::new();
        if console.restore(&data).is_ok() {
            prop_assert_eq!(console.save().len(), data.len());
        }
    }
}
