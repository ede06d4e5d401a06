//! A channel on paper: a thread that compresses and sends, a socket's buffer, a link.

use std::time::Duration;

use super::*;

const PAGE: f64 = PAGE_SIZE as f64;
const BATCH: u64 = 256;
/// What a socket takes before it makes its sender wait.
const BUFFER: f64 = (4 << 20) as f64;
/// How fast the kernel copies, in bytes a second.
const COPY: f64 = 5e9;
const GBIT: f64 = 125e6;
const US: f64 = 1e-6;

/// Pages and what they are like.
#[derive(Clone, Copy)]
struct Content {
    /// Seconds that compressing one takes.
    cost: f64,
    /// Its bytes then; as many as it had for one that shrinks too little.
    size: f64,
}

const HALF: Content = Content { cost: 3.0 * US, size: PAGE / 2.0 };
const RANDOM: Content = Content { cost: 2.0 * US, size: PAGE };

struct Channel {
    encoder: Encoder,
    /// Bytes a second.
    link: f64,
    limit: Option<f64>,
    buffered: f64,
    time: f64,
    wire: f64,
    compressing: f64,
    last: Encoding,
    reasons: Vec<String>,
}

impl Channel {
    fn new(link: f64) -> Self {
        Self {
            encoder: Encoder::default(),
            link,
            limit: None,
            buffered: 0.0,
            time: 0.0,
            wire: 0.0,
            compressing: 0.0,
            last: Encoding::Raw,
            reasons: Vec::new(),
        }
    }

    fn pass(&mut self, seconds: f64) {
        self.time += seconds;
        self.buffered = (self.buffered - seconds * self.link).max(0.0);
    }

    fn send(&mut self, batches: u64, content: Content) {
        for _ in 0..batches {
            let (encoding, why) = self.encoder.next(self.limit);
            self.encoder.told += u32::from(why.is_some());
            self.reasons.extend(why);
            self.last = encoding;
            let tried = match encoding {
                Encoding::Raw => 0,
                Encoding::Probe => MAX_BLOCK_PAGES,
                Encoding::Lz4 => BATCH,
            };
            let packed = if content.size < PAGE { tried } else { 0 };
            let took = tried as f64 * content.cost;
            let lz4_bytes = packed as f64 * content.size;
            let bytes = (BATCH - packed) as f64 * PAGE + lz4_bytes;
            self.pass(took);
            let sending = (self.buffered + bytes - BUFFER).max(0.0) / self.link + bytes / COPY;
            self.buffered += bytes;
            self.pass(sending);
            self.wire += bytes;
            self.compressing += took;
            let sent = Sent {
                data_pages: BATCH,
                bytes: bytes as u64,
                lz4: Compressed {
                    tried,
                    took: Duration::from_secs_f64(took),
                    pages: packed,
                    bytes: lz4_bytes as u64,
                },
                busy: Duration::from_secs_f64(took + sending),
                sending: Duration::from_secs_f64(sending),
                ..Sent::default()
            };
            self.encoder.see(&sent, self.limit);
        }
    }

    /// Seconds until everything has left the buffer too.
    fn done(&self) -> f64 {
        self.time + self.buffered / self.link
    }
}

/// 1 GiB raw over such a link, in seconds.
fn raw(link: f64) -> f64 {
    let mut channel = Channel::new(link);
    channel.encoder.credit = f64::NEG_INFINITY;
    channel.send(1024, RANDOM);
    assert_eq!(channel.compressing, 0.0);
    channel.done()
}

#[test]
fn half_the_bytes_take_half_the_time_where_the_link_is_the_limit() {
    for link in [0.1 * GBIT, GBIT] {
        let mut channel = Channel::new(link);
        channel.send(1024, HALF);
        let share = channel.done() / raw(link);
        assert!(share < 0.53, "{share} of the time at {link} bytes/s: {:?}", channel.reasons);
        assert_eq!(channel.last, Encoding::Lz4);
    }
    // 3 µs a page against the 16.4 µs of 2048 bytes.
    let mut channel = Channel::new(GBIT);
    channel.send(64, HALF);
    let said = channel.reasons.last().unwrap();
    assert!(said.starts_with("compressing takes 3.00 µs a page and saves 2048 bytes"), "{said}");
}

#[test]
fn nothing_is_compressed_where_that_takes_longer_than_sending() {
    // 2048 bytes take 1.6 µs at 10 Gbit/s.
    for link in [10.0 * GBIT, 25.0 * GBIT, 1e12] {
        let mut channel = Channel::new(link);
        channel.send(1024, HALF);
        let share = channel.done() / raw(link);
        assert!(share < 1.02, "{share} of the time at {link} bytes/s: {:?}", channel.reasons);
        assert_ne!(channel.last, Encoding::Lz4);
    }
    // What shrinks to nothing pays there.
    let mut channel = Channel::new(10.0 * GBIT);
    channel.send(1024, Content { cost: 1.0 * US, size: 100.0 });
    assert_eq!(channel.last, Encoding::Lz4, "{:?}", channel.reasons);
}

#[test]
fn what_does_not_shrink_costs_at_most_two_percent_on_any_link() {
    for link in [0.01 * GBIT, 0.1 * GBIT, GBIT, 10.0 * GBIT, 40.0 * GBIT, 1e12] {
        for cost in [0.5 * US, 2.0 * US, 50.0 * US] {
            let mut channel = Channel::new(link);
            channel.send(1024, Content { cost, ..RANDOM });
            let raw = raw(link);
            assert!(channel.done() <= raw * 1.02, "{} against {raw} s at {link} bytes/s", channel.done());
            assert!(channel.compressing <= raw * 0.02, "{} s of CPU in {raw} s", channel.compressing);
            assert_eq!(channel.wire, 1024.0 * BATCH as f64 * PAGE);
            assert!(channel.compressing > 0.0 || raw < 0.2, "nobody looked in {raw} s");
        }
    }
}

#[test]
fn a_guest_whose_content_changes_is_noticed() {
    let mut channel = Channel::new(GBIT);
    channel.send(200, RANDOM);
    assert_ne!(channel.last, Encoding::Lz4);
    channel.send(3, HALF);
    assert_eq!(channel.last, Encoding::Lz4, "{:?}", channel.reasons);
    channel.send(2, RANDOM);
    assert_ne!(channel.last, Encoding::Lz4, "{:?}", channel.reasons);
}

#[test]
fn content_that_varies_by_the_megabyte_is_compressed_where_it_shrinks() {
    let mut channel = Channel::new(GBIT);
    for _ in 0..50 {
        channel.send(8, RANDOM);
        channel.send(8, HALF);
    }
    // All of it raw is 1, and 0.75 is what knowing beforehand would make of it.
    let share = channel.wire / (800.0 * BATCH as f64 * PAGE);
    assert!(share < 0.82, "{share} of the bytes: {:?}", channel.reasons);
}

#[test]
fn a_link_that_becomes_faster_or_slower_is_noticed() {
    let mut channel = Channel::new(GBIT);
    channel.send(100, HALF);
    assert_eq!(channel.last, Encoding::Lz4);
    // Compressing keeps the channel so busy that the link's rate doesn't show until it is looked at.
    channel.link = 20.0 * GBIT;
    channel.send(2000, HALF);
    assert_ne!(channel.last, Encoding::Lz4, "{:?}", channel.reasons);
    channel.link = GBIT;
    channel.send(20, HALF);
    assert_eq!(channel.last, Encoding::Lz4, "{:?}", channel.reasons);
}

#[test]
fn a_thread_that_loses_its_core_now_and_then_is_no_slow_host() {
    // 25 ms lost in a batch, and about as much in the first look of all.
    let slow = Content { cost: 100.0 * US, ..HALF };
    let mut channel = Channel::new(GBIT);
    channel.send(2, Content { cost: 2_000.0 * US, ..HALF });
    channel.send(30, HALF);
    assert_eq!(channel.last, Encoding::Lz4, "{:?}", channel.reasons);
    for _ in 0..10 {
        channel.send(1, slow);
        assert_eq!(channel.last, Encoding::Lz4, "{:?}", channel.reasons);
        channel.send(5, HALF);
    }
    // A host that has become slow is believed.
    channel.send(20, slow);
    assert_ne!(channel.last, Encoding::Lz4, "{:?}", channel.reasons);
}

#[test]
fn a_bandwidth_limit_counts_as_the_link() {
    let mut channel = Channel::new(40.0 * GBIT);
    channel.limit = Some(GBIT);
    channel.send(1024, HALF);
    assert_eq!(channel.last, Encoding::Lz4, "{:?}", channel.reasons);
}
