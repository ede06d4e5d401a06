use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use migrated_testkit::wait_until;
use migrated_witness::{Answer, PORT, Request};

use crate::host::PATIENCE;
use crate::netns::Netns;

/// Time between two requests, whether or not they were answered.
const PERIOD: Duration = Duration::from_millis(10);

/// A client that goes on asking, on one connection.
pub struct Caller {
    stop: Sender<()>,
    asking: JoinHandle<io::Result<()>>,
    reading: JoinHandle<()>,
    calls: Arc<Mutex<Vec<Call>>>,
    /// Why no more answers come.
    broken: Arc<Mutex<Option<io::Error>>>,
}

/// A request, and its answer if that has come.
#[derive(Clone, Copy, Debug)]
struct Call {
    request: Request,
    asked: Instant,
    asked_at: SystemTime,
    answered: Option<Answered>,
}

#[derive(Clone, Copy, Debug)]
struct Answered {
    at: Instant,
    answer: Answer,
}

/// What a client saw while something happened to the guest.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Longest time between two answers.
    pub gap: Duration,
    /// Longest time for which a thread in the guest found its clock not to have gone on.
    pub guest_gap: Duration,
}

impl Call {
    /// The guest's clock was read between question and answer, so it is ahead by this or more, up to that, in s.
    fn clock_ahead(&self) -> Option<(f64, f64)> {
        let Answered { at, answer } = self.answered?;
        let since_epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let read = Duration::from_nanos(answer.unix_ns);
        let ahead_of = |time: SystemTime| {
            let time = since_epoch(time);
            read.saturating_sub(time).as_secs_f64() - time.saturating_sub(read).as_secs_f64()
        };
        Some((ahead_of(self.asked_at + (at - self.asked)), ahead_of(self.asked_at)))
    }
}

impl Caller {
    /// Connects from `netns` to the guest at `address`.
    pub fn new(netns: &Netns, address: &str) -> Self {
        let address = SocketAddr::from((address.parse::<Ipv4Addr>().unwrap(), PORT));
        let mut stream = netns.enter(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (stop, stopped) = mpsc::channel();
        let calls = Arc::new(Mutex::new(Vec::<Call>::new()));
        let (mut reader, known) = (stream.try_clone().unwrap(), Arc::clone(&calls));
        let broken = Arc::new(Mutex::new(None));
        let breaks = Arc::clone(&broken);
        let reading = thread::spawn(move || {
            let ended = read_answers(&mut reader, &known);
            *breaks.lock().unwrap() = ended.err();
        });
        let known = Arc::clone(&calls);
        let asking = thread::spawn(move || {
            for number in 0.. {
                let request = Request { number, nonce: number.rotate_right(16) };
                let (asked, asked_at) = (Instant::now(), SystemTime::now());
                known.lock().unwrap().push(Call { request, asked, asked_at, answered: None });
                request.write(&mut stream)?;
                if stopped.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            // The guest answers what is on its way and then closes, too.
            stream.shutdown(std::net::Shutdown::Write)
        });
        let caller = Self { stop, asking, reading, calls, broken };
        caller.await_answers_to_what_is_asked_now();
        caller
    }

    /// Waits until the guest has answered what is asked from now on, some of it.
    #[track_caller]
    pub fn await_answers_to_what_is_asked_now(&self) {
        let now = Instant::now();
        wait_until("the guest answers", PATIENCE, || {
            if let Some(error) = &*self.broken.lock().unwrap() {
                panic!("the connection broke: {error}");
            }
            let calls = self.calls.lock().unwrap();
            calls
                .iter()
                .rev()
                .take_while(|call| call.asked > now)
                .filter(|call| call.answered.is_some())
                .count()
                > 10
        });
    }

    /// All of them; a copy, so that a failed assertion does not break off the threads that go on calling.
    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// What was seen from then until now.
    pub fn seen_since(&self, since: Instant) -> Seen {
        let calls = self.calls();
        let answered: Vec<_> = calls.iter().filter_map(|call| call.answered).collect();
        let meanwhile = answered.windows(2).filter(|pair| pair[1].at > since);
        let gaps = meanwhile.clone().map(|pair| pair[1].at - pair[0].at);
        let guest_gaps = meanwhile.map(|pair| Duration::from_nanos(pair[1].answer.clocks.gap_ns));
        Seen { gap: gaps.max().unwrap(), guest_gap: guest_gaps.max().unwrap() }
    }

    /// How far the guest's wall clock is ahead of the host's, in ms, by all answers to what was asked since then:
    /// between two bounds, since each answer's way takes time.
    #[track_caller]
    pub fn clock_ahead_since(&self, since: Instant) -> (f64, f64) {
        let calls = self.calls();
        let answered = calls.iter().filter(|call| call.asked > since).filter_map(Call::clock_ahead);
        let (low, high) = answered
            .reduce(|(low, high), (other_low, other_high)| (low.max(other_low), high.min(other_high)))
            .unwrap_or_else(|| panic!("no answer to anything asked in the last {:?}", since.elapsed()));
        (low * 1e3, high * 1e3)
    }

    /// Ends the connection in order: all was answered, rightly, and no clock in the guest went back.
    #[track_caller]
    pub fn finish(self) {
        self.stop.send(()).unwrap();
        self.asking.join().unwrap().unwrap();
        self.reading.join().unwrap();
        assert!(self.broken.lock().unwrap().is_none(), "the connection broke: {:?}", self.broken);
        for call in self.calls.lock().unwrap().clone() {
            let answered = call.answered.unwrap_or_else(|| panic!("unanswered: {call:?}"));
            assert_eq!(answered.answer.clocks.backward_ns, 0, "a clock went back: {call:?}");
        }
    }
}

/// Notes the answers to all calls, until the stream ends. An error when one is wrong or none comes.
fn read_answers(stream: &mut TcpStream, calls: &Mutex<Vec<Call>>) -> io::Result<()> {
    for number in 0.. {
        let answer = match Answer::read(stream) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            answer => answer?,
        };
        let call = &mut calls.lock().unwrap()[number];
        if !answer.answers(call.request) {
            return Err(io::Error::other(format!("{answer:?} to {call:?}")));
        }
        call.answered = Some(Answered { at: Instant::now(), answer });
    }
    Ok(())
}
