//! A guest that goes from host to host, and what is seen of each move.

use std::time::{Duration, Instant};

use anyhow::Result;
use migrated_api::{MigrationRecord, MigrationState, Vm, WorkloadCounters};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cost::{Cost, Meter};
use crate::guest::{self, Guest};
use crate::lab::{Host, Lab};
use crate::report::say;
use crate::watch::{Course, Sample, Watch, longest_stall_us};

/// How long the guest is looked at before each move: what it gets done then is what it is held against.
pub(crate) const BASELINE: Duration = Duration::from_secs(1);
/// How long after a move what it gets done still counts as part of the move.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);
/// How long a guest runs before anything is measured.
pub(crate) const WARM_UP: Duration = Duration::from_secs(1);

/// Longest time for any move: a slow link takes long for much memory.
pub(crate) const LONGEST: Duration = Duration::from_secs(600);

/// What was seen of a move, whoever made it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The downtime that whoever made the move reports, in ms.
    pub downtime_ms: Option<f64>,
    /// The gap that the guest itself saw at the switch, in ms.
    pub gap_ms: Option<f64>,
    /// The longest time that the guest stood still at all from the beginning until it had settled, in ms.
    pub stall_ms: Option<f64>,
    /// From the request until the source was free, in seconds.
    pub total_s: f64,
    /// Page accesses a second before the move.
    pub before_pps: Option<f64>,
    /// Page accesses a second during the move.
    pub during_pps: Option<f64>,
    /// The degradation area, in seconds: see [`Course::lost_s`].
    pub lost_s: Option<f64>,
    /// What it took of the hosts, from the request until the source was free.
    #[serde(default)]
    pub cost: Option<Cost>,
}

impl Seen {
    /// What the guest got done during the move, in percent of what it got done before; of a guest that did anything.
    #[must_use]
    pub fn kept_percent(&self) -> Option<f64> {
        let before = self.before_pps.filter(|pages| *pages > 0.0)?;
        Some(self.during_pps? / before * 100.0)
    }

    /// Fills in what the guest got done, from what was seen of its accesses.
    #[must_use]
    pub fn with_work(self, accesses: &Course, began: Instant, ended: Instant) -> Self {
        let before_pps = began.checked_sub(BASELINE).and_then(|from| accesses.rate(from, began));
        Self {
            before_pps,
            during_pps: accesses.rate(began, ended),
            lost_s: before_pps.and_then(|before| accesses.lost_s(before, began, ended + SETTLE)),
            ..self
        }
    }
}

/// One move of ours.
#[derive(Debug, Serialize)]
pub struct Move {
    /// What was seen.
    pub seen: Seen,
    /// The source's record.
    pub record: MigrationRecord,
    /// The destination's record.
    pub arrival: Option<MigrationRecord>,
    /// Why the guest did not come to the other host, if it did not.
    pub failure: Option<String>,
    /// What else is not as it should be: what the guest lost above all.
    pub losses: Vec<String>,
    /// When it was asked for.
    #[serde(skip)]
    pub began: Instant,
    /// When the source was free.
    #[serde(skip)]
    pub ended: Instant,
    /// The guest before, during and after.
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

impl Move {
    /// Everything that is not as it should be.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.failure.iter().chain(&self.losses).cloned().collect()
    }

    /// How a count of the guest's went on, during the move ÷ before, in percent.
    #[must_use]
    pub fn kept_percent(&self, count: impl Fn(&WorkloadCounters) -> u64) -> Option<f64> {
        let course = Course::of(&self.samples, count);
        Seen::default().with_work(&course, self.began, self.ended).kept_percent()
    }
}

/// A guest in a lab.
#[derive(Debug)]
pub struct Traveller<'a> {
    lab: &'a Lab,
    at: usize,
}

impl<'a> Traveller<'a> {
    /// Makes the guest at the first host, and warms it up.
    ///
    /// # Errors
    /// As of [`Guest::create`].
    pub fn new(lab: &'a Lab, guest: &Guest) -> Result<Self> {
        say(&format!("a guest of {} MiB: {}", guest.memory_mib, guest.workload));
        guest.create(&lab.hosts[0])?;
        std::thread::sleep(WARM_UP);
        Ok(Self { lab, at: 0 })
    }

    fn here(&self) -> &'a Host {
        &self.lab.hosts[self.at]
    }

    /// Stops the guest, so that it takes nothing from what is measured meanwhile.
    ///
    /// # Errors
    /// The daemon does not answer, or refuses.
    pub fn rest(&self) -> Result<()> {
        let _: Vm = self.here().api.post(&format!("/v1/vms/{}/pause", guest::NAME), &())?;
        Ok(())
    }

    /// Lets it run on, and warms it up again.
    ///
    /// # Errors
    /// As of [`rest`](Self::rest).
    pub fn wake(&self) -> Result<()> {
        let _: Vm = self.here().api.post(&format!("/v1/vms/{}/resume", guest::NAME), &())?;
        std::thread::sleep(WARM_UP);
        Ok(())
    }

    /// Moves the guest to the other host, with a request as of `StartMigration` without `to`. What goes wrong
    /// with it is in the result; the guest may then still be where it was.
    ///
    /// # Errors
    /// A daemon does not answer, or refuses.
    pub fn go(&mut self, request: &Value) -> Result<Move> {
        let (from, to) = (self.here(), &self.lab.hosts[1 - self.at]);
        let watch = Watch::start(&self.lab.hosts)?;
        std::thread::sleep(BASELINE);
        let meter = Meter::start(&self.lab.pair, self.at)?;
        let began = Instant::now();
        let begun = from.migrate(guest::NAME, to, request)?;
        let record = from.await_end(&begun.id, LONGEST)?;
        let cost = meter.end()?;
        let ended = began + Duration::from_secs_f64(record.total_ms.max(0.0) / 1e3);
        let (arrival, failure) = match record.state {
            Some(MigrationState::Completed) => {
                self.at = 1 - self.at;
                (Some(to.await_end(&begun.id, LONGEST)?), None)
            }
            state => (None, Some(why_not(state, &record))),
        };
        std::thread::sleep(SETTLE);
        let samples = watch.end()?;
        let losses = self.look_at_guest()?.into_iter().collect();
        let gap_us = record.guest_gap_us.or(arrival.as_ref().and_then(|arrival| arrival.guest_gap_us));
        let seen = Seen {
            downtime_ms: Some(record.downtime_us.total / 1e3),
            gap_ms: gap_us.map(|us| us / 1e3),
            stall_ms: Some(longest_stall_us(&during(&samples, began)).max(gap_us.unwrap_or_default()) / 1e3),
            total_s: record.total_ms / 1e3,
            cost: Some(cost),
            ..Seen::default()
        };
        let seen = seen.with_work(&Course::of(&samples, accesses), began, ended);
        Ok(Move { seen, record, arrival, failure, losses, began, ended, samples })
    }

    /// The guest must run here, not there, and have lost nothing.
    fn look_at_guest(&self) -> Result<Option<String>> {
        let elsewhere = guest::counters(&self.lab.hosts[1 - self.at])?;
        if elsewhere.is_some() {
            return Ok(Some("the guest runs at both hosts".into()));
        }
        Ok(match guest::counters(self.here())? {
            None => Some(format!("the guest does not run at host {}", self.here().name)),
            Some(counters) => guest::losses(&counters),
        })
    }

    /// Ends the guest.
    ///
    /// # Errors
    /// It isn't where it should be.
    pub fn end(self) -> Result<()> {
        guest::delete(self.here())
    }
}

/// Page accesses of all vCPUs.
#[must_use]
pub const fn accesses(counters: &WorkloadCounters) -> u64 {
    counters.writes + counters.reads
}

fn during(samples: &[Sample], began: Instant) -> Vec<Sample> {
    samples.iter().filter(|sample| sample.at >= began).copied().collect()
}

fn why_not(state: Option<MigrationState>, record: &MigrationRecord) -> String {
    let state = state.map_or("negotiating", MigrationState::name);
    let why = record.error.as_ref().map(|error| format!(" [{}]: {}", error.code, error.message));
    format!("migration {} {state}{}", record.id, why.unwrap_or_default())
}
