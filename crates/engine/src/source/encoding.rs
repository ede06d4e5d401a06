//! Whether pages are compressed: where that makes them arrive sooner, and nowhere else.
//!
//! A channel's thread compresses a page and then sends it, so a page that is compressed costs it the time that takes,
//! and saves it the time in which the bytes that it saves would have been sent:
//!
//! > compress ⟺ cost < saves ÷ rate
//!
//! with the cost in seconds a page, the bytes saved a page, and the rate in bytes a second *of one channel*. Where
//! the kernel sends out of its buffer while the thread compresses, compressing is cheaper than that; then the rule
//! errs on the side of the CPU, which belongs to the guests. All three are measured, here and now:
//!
//! *Cost and saving* are what compressing came to of late. While pages go raw, a block is compressed now and then to
//! know both, so that a guest whose content changes is noticed. That takes [`PROBING`] of the time that pages take
//! anyway, whatever the link: so looking costs incompressible data no more than that, and not a byte on the wire.
//!
//! *The rate* of a link shows only while it is what holds the channel up. Bytes over the time spent in the transport are
//! at least the rate, as what was compressed meanwhile has made room in buffers; bytes over all the time are at most the
//! rate, as the link may have waited for us. The estimate stays as it is within these bounds and follows one that
//! it crosses. Raw, they are almost the same. Compressing can hold a fast link up so much that its rate doesn't show
//! at all; so from time to time a window goes raw to see what it carries now.

use migrated_pages::PAGE_SIZE;
use migrated_wire::{LZ4_SINCE, MAX_BLOCK_PAGES};

use super::batch::{Compressed, Sent};
use super::{Source, common::Common};
use crate::record::Compression;

/// Share of a channel's time that is spent on looking whether compressing would pay: half of what it may cost to find
/// that it doesn't.
const PROBING: f64 = 0.01;
/// What compressing a page takes as long as nobody has tried: a slow host.
const COST_GUESS: f64 = 10e-6;
/// What a look is reckoned with at most, a page: 100 MB/s. A thread that lost its core meanwhile seems slower than any host.
const COST_MAX: f64 = 40e-6;
/// A cost above the known one by more than this factor counts as that: the thread had lost its core, or will be believed
/// the next time.
const RISES: f64 = 4.0;
/// ... and this is the most that one batch changes of a cost that rises. One that falls is believed at once.
const RISE_SHARE: f64 = 0.25;
/// What was found of older pages counts less with each page, as in a mean over so many: a quarter of a batch. So where
/// content varies by the MiB, one block of a guest whose pages shrink to half is reason enough to compress the next
/// batch at 1 Gbit/s, and one batch that doesn't shrink is reason to stop. The one error costs a channel a few percent of a
/// batch's time, the other one half.
const MEMORY_PAGES: f64 = 64.0;
/// Time of a channel over which the link is measured at least, in seconds: many wake-ups of a sender.
const WINDOW: f64 = 0.02;
/// Fewer bytes than that may have waited for what was sent before them.
const WINDOW_BYTES: f64 = (256 << 10) as f64;
/// With less of its time in the transport, a channel is not held up by the link.
const UNHELD: f64 = 0.25;
/// Seconds after which a link that doesn't hold a channel up is looked at raw for a window.
const LOOK_AFTER: f64 = 1.0;
/// Changes that the record tells of; where content varies there are many.
const TOLD: u32 = 8;

/// What a page channel does with the pages of a batch that have content. What shrinks too little goes raw in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Sends them as they are.
    #[default]
    Raw,
    /// Compresses one block and sends the rest as it is.
    Probe,
    /// Compresses them.
    Lz4,
}

/// What a channel's time went into.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    bytes: f64,
    sending: f64,
    busy: f64,
}

/// Chooses how pages travel.
#[derive(Debug)]
pub(super) struct Encoder {
    /// Seconds a page.
    cost: Option<f64>,
    /// Bytes a page.
    saves: f64,
    /// Bytes a second that a channel was seen to carry.
    rate: Option<f64>,
    window: Window,
    /// Seconds that may be spent on probing now.
    credit: f64,
    /// Seconds of compressing in which the link held nobody up.
    unheld: f64,
    /// Whether this window goes raw to see what the link carries.
    looking: bool,
    compresses: bool,
    /// Choices that the record tells of.
    told: u32,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            cost: None,
            saves: 0.0,
            rate: None,
            window: Window::default(),
            // So that the second batch looks.
            credit: COST_GUESS * MAX_BLOCK_PAGES as f64,
            unheld: 0.0,
            looking: false,
            compresses: false,
            told: 0,
        }
    }
}

impl Encoder {
    /// Takes in what became of a batch on any channel, which may carry at most `limit` bytes a second.
    fn see(&mut self, sent: &Sent, limit: Option<f64>) {
        let Compressed { tried, took, .. } = sent.lz4;
        if tried > 0 {
            let pages = tried as f64;
            let (cost, saves) = (took.as_secs_f64() / pages, sent.lz4.saved() as f64 / pages);
            // What was found first is all that is known.
            let share = if self.cost.is_some() { (pages / MEMORY_PAGES).min(1.0) } else { 1.0 };
            self.saves += (saves - self.saves) * share;
            self.cost = Some(match self.cost {
                Some(known) if cost > known => {
                    known + (cost.min(known * RISES) - known) * share.min(RISE_SHARE)
                }
                _ => cost,
            });
        }
        let busy = sent.busy.as_secs_f64();
        // Whoever has to wait for a bandwidth limit has that time, too.
        let takes = limit.map_or(busy, |limit| busy.max(sent.bytes as f64 / limit));
        self.credit = (self.credit + takes * PROBING).min(2.0 * self.probe_cost());
        self.window.bytes += sent.bytes as f64;
        self.window.sending += sent.sending.as_secs_f64();
        self.window.busy += busy;
        if self.window.busy >= WINDOW && self.window.bytes >= WINDOW_BYTES {
            self.end_window();
        }
    }

    fn end_window(&mut self) {
        let Window { bytes, sending, busy } = std::mem::take(&mut self.window);
        let (least, most) = (bytes / busy, bytes / sending.max(f64::MIN_POSITIVE));
        self.rate = Some(self.rate.unwrap_or(most).min(most).max(least));
        self.unheld = match self.compresses && !self.looking && sending < UNHELD * busy {
            true => self.unheld + busy,
            false => 0.0,
        };
        self.looking = self.unheld >= LOOK_AFTER;
    }

    fn probe_cost(&self) -> f64 {
        self.cost.unwrap_or(COST_GUESS).min(COST_MAX) * MAX_BLOCK_PAGES as f64
    }

    /// What a channel that carries at most `limit` bytes a second does next, and in words why, when that has changed.
    fn next(&mut self, limit: Option<f64>) -> (Encoding, Option<String>) {
        let mut why = None;
        let rate = self.rate.map_or(limit, |rate| Some(limit.map_or(rate, |limit| rate.min(limit))));
        if let (Some(cost), Some(rate)) = (self.cost, rate) {
            let gain = self.saves / rate;
            let pays = cost < gain;
            if pays != self.compresses || self.told == 0 {
                why = Some(format!(
                    "compressing takes {:.2} µs a page and saves {:.0} bytes, which take {:.2} µs at the {:.1} MiB/s of \
                     a channel",
                    cost * 1e6,
                    self.saves,
                    gain * 1e6,
                    rate / f64::from(1 << 20),
                ));
            }
            self.compresses = pays;
        }
        let encoding = if self.compresses {
            if self.looking { Encoding::Raw } else { Encoding::Lz4 }
        } else if self.credit >= self.probe_cost() {
            self.credit -= self.probe_cost();
            Encoding::Probe
        } else {
            Encoding::Raw
        };
        (encoding, why)
    }
}

impl Source {
    /// How the pages of a page channel's next batch are to travel. (Those that somebody waits for go raw: to compress
    /// one takes about as long as to fetch it over a fast link.)
    pub fn lane_encoding(&mut self) -> Encoding {
        self.common.lane_encoding()
    }
}

impl Common {
    fn lane_encoding(&mut self) -> Encoding {
        if self.config.compression == Compression::Off {
            return Encoding::Raw;
        }
        if self.protocol < LZ4_SINCE {
            if self.encoder.told == 0 {
                let why = format!(
                    "the destination speaks version {} of the protocol: no compression",
                    self.protocol
                );
                self.tell_encoding("encode_raw", why);
            }
            return Encoding::Raw;
        }
        let limit = self.channel_limit();
        let (encoding, why) = self.encoder.next(limit);
        if let Some(why) = why {
            self.tell_encoding(if self.encoder.compresses { "encode_lz4" } else { "encode_raw" }, why);
        }
        encoding
    }

    /// Bytes a second that a channel may send, if there is a limit.
    fn channel_limit(&self) -> Option<f64> {
        self.pace.rate().map(|rate| rate / f64::from(self.config.channels.max(1)))
    }

    fn tell_encoding(&mut self, decision: &str, why: String) {
        if self.encoder.told < TOLD {
            self.encoder.told += 1;
            self.decide(decision, why);
        }
    }

    /// Counts how a batch travelled, and learns from it.
    pub(super) fn account_encoding(&mut self, sent: &Sent) {
        self.encoder.see(sent, self.channel_limit());
        let counts = &mut self.record.encodings;
        counts.raw.pages += sent.data_pages - sent.lz4.pages;
        counts.raw.bytes += sent.bytes - sent.lz4.bytes;
        counts.zero.pages += sent.zero_pages;
        counts.lz4.pages += sent.lz4.pages;
        counts.lz4.bytes += sent.lz4.bytes;
        counts.saved_bytes += sent.lz4.saved();
        counts.compress_ms += sent.lz4.took.as_secs_f64() * 1e3;
    }
}

impl Compressed {
    /// Bytes that it kept off the wire.
    const fn saved(&self) -> u64 {
        (self.pages * PAGE_SIZE as u64).saturating_sub(self.bytes)
    }
}

#[cfg(test)]
mod tests;
