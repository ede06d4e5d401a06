//! The push against a bottleneck: a token bucket with a queue in front of it, on a virtual clock.

use super::*;
use crate::pace::Pace;

const MS: Duration = Duration::from_millis(1);
const GBIT: f64 = 125e6;

/// What BBR keeps in flight on a short path, whatever the rate.
const WINDOW: f64 = 200_000.0;

struct Bottleneck {
    rate: f64,
    /// Bytes that pass at once after a rest.
    bucket: f64,
    tokens: f64,
    queue: f64,
    /// Delay of others' making.
    foreign: Duration,
}

impl Bottleneck {
    fn new(rate: f64, bucket: f64) -> Self {
        Self { rate, bucket, tokens: bucket, queue: 0.0, foreign: Duration::ZERO }
    }

    fn advance(&mut self, time: Duration) -> f64 {
        self.tokens += self.rate * time.as_secs_f64();
        let passed = self.queue.min(self.tokens);
        self.queue -= passed;
        self.tokens = (self.tokens - passed).min(self.bucket);
        passed
    }
}

struct Run {
    now: Duration,
    link: Bottleneck,
    push: PushRate,
    pace: Pace,
    acked: f64,
    srtt: Duration,
}

/// What happened in a while.
struct Seen {
    /// Share of the link's rate that was used.
    used: f64,
    /// Delays of the queue, in ms and in order.
    delays: Vec<f64>,
}

impl Seen {
    fn quantile(&self, share: f64) -> f64 {
        self.delays[((self.delays.len() - 1) as f64 * share) as usize]
    }
}

impl Run {
    const MIN_RTT: Duration = Duration::from_micros(50);
    const STEP: Duration = Duration::from_micros(50);

    fn new(link: Bottleneck) -> Self {
        let mut push = PushRate::new(1);
        push.govern(Duration::ZERO);
        let (now, acked, srtt) = (Duration::ZERO, 0.0, Self::MIN_RTT);
        Self { now, link, push, pace: Pace::new(None), acked, srtt }
    }

    fn go(&mut self, time: Duration) -> Seen {
        let (until, before, mut delays) = (self.now + time, self.acked, Vec::new());
        while self.now < until {
            self.now += Self::STEP;
            self.acked += self.link.advance(Self::STEP);
            let delay = Duration::from_secs_f64(self.link.queue / self.link.rate) + self.link.foreign;
            self.srtt = (self.srtt * 7 + Self::MIN_RTT + delay) / 8;
            delays.push(delay.as_secs_f64() * 1e3);
            self.pace.limit_to(self.now, self.push.rate());
            while self.link.queue < WINDOW && self.pace.not_before(self.now).is_none() {
                let bytes = batch_pages(self.push.rate(), true) * PAGE_SIZE as u64;
                self.pace.spend(bytes);
                self.link.queue += bytes as f64;
                let sample = PathSample {
                    rtt: self.srtt,
                    min_rtt: Self::MIN_RTT,
                    acked: self.acked as u64,
                    in_flight: self.link.queue as u64,
                    ..PathSample::default()
                };
                self.push.see(self.now, 0, &sample);
                self.pace.limit_to(self.now, self.push.rate());
            }
        }
        delays.sort_by(f64::total_cmp);
        let used = (self.acked - before) / time.as_secs_f64() / self.link.rate;
        Seen { used, delays }
    }
}

#[test]
fn a_full_link_keeps_its_rate_and_loses_its_queue() {
    for (gbit, bucket) in [(0.1, 64e3), (1.0, 64e3), (1.0, 2.5e6), (10.0, 2.5e6)] {
        let mut run = Run::new(Bottleneck::new(GBIT * gbit, bucket));
        run.go(100 * MS);
        let seen = run.go(3000 * MS);
        let (p50, p99) = (seen.quantile(0.5), seen.quantile(0.99));
        eprintln!("{gbit} Gbit/s, bucket {bucket}: {:.3} used, p50 {p50:.3} p99 {p99:.3} ms", seen.used);
        assert!(
            seen.used >= 0.95 && seen.used < 1.01,
            "{gbit} Gbit/s, bucket {bucket}: {:.3} used",
            seen.used
        );
        let target = run.push.target(run.now).as_secs_f64() * 1e3;
        assert!(p50 <= target / 2.0 && p99 <= target * 3.0, "{gbit}, {bucket}: p50 {p50:.2} p99 {p99:.2} ms");
    }
}

#[test]
fn what_rounds_show_is_known_at_the_switch() {
    let mut run = Run::new(Bottleneck::new(GBIT, 2.5e6));
    run.push = PushRate::new(1);
    run.go(200 * MS);
    assert_eq!(run.push.rate(), None, "rounds are not held back");
    let link = run.push.link().unwrap();
    assert!((0.95..1.05).contains(&(link / GBIT)), "{link}");
    run.push.govern(run.now);
    assert!(run.push.rate().unwrap() < link);
}

#[test]
fn it_follows_a_link_down_and_up() {
    let mut run = Run::new(Bottleneck::new(GBIT, 64e3));
    run.go(1000 * MS);
    for (rate, within) in [(GBIT / 4.0, 500), (GBIT * 5.0, 4000), (GBIT / 10.0, 1000)] {
        run.link.rate = rate;
        run.go(within * MS);
        let seen = run.go(2000 * MS);
        assert!(
            seen.used >= 0.93 && seen.quantile(0.5) <= 2.0,
            "{rate}: {:.3} {:.3}",
            seen.used,
            seen.quantile(0.5)
        );
    }
}

#[test]
fn a_link_without_a_queue_is_not_held_back() {
    let mut push = PushRate::new(2);
    push.govern(Duration::ZERO);
    for batch in 1..10_000u32 {
        let sample = PathSample {
            rtt: Duration::from_micros(300),
            min_rtt: Duration::from_micros(30),
            acked: u64::from(batch) * 128 * 1024,
            in_flight: 600_000,
            ..PathSample::default()
        };
        push.see(Duration::from_micros(50) * batch, (batch % 2) as u16, &sample);
        assert_eq!(push.rate(), None);
    }
}

#[test]
fn a_delay_of_others_making_is_not_given_way_to() {
    let mut run = Run::new(Bottleneck::new(GBIT, 64e3));
    run.go(500 * MS);
    run.link.foreign = 5 * MS;
    run.go(500 * MS);
    assert!(run.go(2000 * MS).used > 0.85);
}

#[test]
fn a_link_that_carries_next_to_nothing_still_gets_a_page_now_and_then() {
    let mut run = Run::new(Bottleneck::new(1000.0, 1000.0));
    run.go(2000 * MS);
    assert!(run.push.rate().is_none_or(|rate| rate >= FLOOR));
}

#[test]
fn batches_fit_the_rate() {
    let pages = |rate| batch_pages(rate, false);
    assert_eq!((pages(None), pages(Some(GBIT)), pages(Some(1e6))), (BATCH_PAGES_MAX, 7, BATCH_PAGES_MIN));
    assert_eq!(batch_pages(Some(1e12), true), BATCH_PAGES_BUSY);
}

#[test]
fn a_host_that_stalls_now_and_then_costs_little_more_than_the_stalls() {
    let fast = GBIT * 20.0;
    let mut run = Run::new(Bottleneck::new(fast, 64e3));
    let before = run.acked;
    for round in 0..40 {
        run.link.rate = fast;
        run.go(40 * MS);
        run.link.rate = fast / f64::from(20 + round % 7 * 30);
        run.go(10 * MS);
    }
    let used = (run.acked - before) / 2.0 / fast;
    assert!(used > 0.7, "{used:.3} of the link, of which stalls take 0.2");
}

#[test]
fn acknowledgements_that_are_held_up_do_not_stop_the_push() {
    let mut run = Run::new(Bottleneck::new(GBIT, 64e3));
    run.go(500 * MS);
    let before = run.push.rate().unwrap();
    for sample in 0..20 {
        let sample = PathSample {
            rtt: 20 * MS,
            min_rtt: Run::MIN_RTT,
            acked: run.acked as u64,
            in_flight: 2_000_000 + sample * 28_672,
            ..PathSample::default()
        };
        run.now += MS;
        run.push.see(run.now, 0, &sample);
    }
    assert!(run.push.rate().unwrap() > before / 8.0, "{before} {:?}", run.push.rate());
    run.srtt = Run::MIN_RTT;
    run.go(300 * MS);
    assert!(run.go(500 * MS).used > 0.9);
}
