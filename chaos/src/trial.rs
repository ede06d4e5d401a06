use std::time::{Duration, Instant};

use anyhow::Result;
use migrated_api::{MigrationRecord, MigrationState, Mode, VmState};
use migrated_bench::guest::{self, Guest, NAME};
use migrated_bench::lab::{Host, Lab};
use migrated_bench::report::say;
use serde::Serialize;
use serde_json::json;

use crate::mode_name;
use crate::outcome::Outcome;
use crate::witness::Witness;

/// How long a move may take after the link is whole again, and how long both hosts may take to tidy up after it.
const PATIENCE: Duration = Duration::from_secs(180);
/// Time between two looks at what nobody announces.
const LOOK: Duration = Duration::from_millis(20);

/// A move in which something happened.
#[derive(Debug, Serialize)]
pub struct Trial {
    /// How it was moved.
    pub mode: Mode,
    /// What became of it.
    pub outcome: Outcome,
    /// Time from the request until the source was free, or the end, in seconds.
    pub total_s: f64,
    /// The gap that the guest saw at the switch, in ms.
    pub gap_ms: Option<f64>,
    /// The source's record.
    pub record: MigrationRecord,
    /// The destination's record, if it has one.
    pub arrival: Option<MigrationRecord>,
    /// What must never be.
    pub problems: Vec<String>,
}

/// What is to be disturbed: a migration under way.
pub struct UnderWay<'a> {
    /// Its source.
    pub from: &'a Host,
    /// Its id.
    pub id: String,
    /// When it was asked for.
    pub began: Instant,
}

impl UnderWay<'_> {
    /// Where it is now, by its source.
    pub fn state(&self) -> Result<Option<MigrationState>> {
        Ok(self.from.migration(&self.id)?.state)
    }
}

/// A guest in a lab that is moved to and fro, wherever it is.
pub struct Ground<'a> {
    pub lab: &'a Lab,
    at: usize,
}

impl<'a> Ground<'a> {
    /// Makes the guest at the first host.
    pub fn new(lab: &'a Lab, guest: &Guest) -> Result<Self> {
        say(&format!("a guest of {} MiB: {}", guest.memory_mib, guest.workload));
        guest.create(&lab.hosts[0])?;
        Ok(Self { lab, at: 0 })
    }

    /// Moves the guest, disturbs it, and sees what becomes of it.
    pub fn attempt(
        &mut self,
        mode: Mode,
        disturb: impl FnOnce(&UnderWay<'_>) -> Result<()>,
    ) -> Result<Trial> {
        let (from, to) = (&self.lab.hosts[self.at], &self.lab.hosts[1 - self.at]);
        let witness = Witness::start(from, to)?;
        let began = Instant::now();
        // A guest that writes much may stand still as long as pre-copy needs: what is tried here is not that.
        let request = json!({ "mode": mode, "timeout_s": 60, "on_timeout": "stop" });
        let id = from.migrate(NAME, to, &request)?.id;
        let disturbed = UnderWay { from, id, began };
        disturb(&disturbed)?;
        let mut problems = Vec::new();
        let record = match from.await_end(&disturbed.id, PATIENCE) {
            Ok(record) => record,
            Err(error) => {
                problems.push(format!("{error:#}"));
                from.migration(&disturbed.id)?
            }
        };
        if record.state == Some(MigrationState::Completed) {
            self.at = 1 - self.at;
        }
        problems.extend(self.await_one_runner()?);
        problems.extend(witness.end()?);
        // It has none when it was never asked, or has cleaned up.
        let arrival = to.migration(&disturbed.id).ok();
        let gap_us = record.guest_gap_us.or(arrival.as_ref().and_then(|arrival| arrival.guest_gap_us));
        Ok(Trial {
            mode,
            outcome: Outcome::of(&record, arrival.as_ref(), &problems),
            total_s: record.total_ms / 1e3,
            gap_ms: gap_us.map(|us| us / 1e3),
            record,
            arrival,
            problems,
        })
    }

    /// Waits until the guest runs where it should and nowhere else is anything of it, and asks it what it lost.
    fn await_one_runner(&self) -> Result<Option<String>> {
        let (here, elsewhere) = (&self.lab.hosts[self.at], &self.lab.hosts[1 - self.at]);
        let deadline = Instant::now() + PATIENCE;
        let mut before = None;
        loop {
            let (at_home, abroad) = (here.find(NAME)?, elsewhere.find(NAME)?);
            let rounds = |vm: &migrated_api::Vm| vm.workload.map(|counters| counters.heartbeat);
            if let (Some(vm), None) = (&at_home, &abroad) {
                let now = rounds(vm).filter(|_| vm.state == VmState::Running);
                // It must be seen to go on, not only be said to.
                if before.zip(now).is_some_and(|(before, now)| now > before) {
                    return Ok(vm.workload.as_ref().and_then(guest::losses));
                }
                before = before.or(now);
            }
            if Instant::now() > deadline {
                let state = |vm: Option<migrated_api::Vm>| vm.map_or("unknown", |vm| vm.state.name());
                return Ok(Some(format!(
                    "after {PATIENCE:?} the guest should run at {} alone; it is {} there and {} at {}",
                    here.name,
                    state(at_home),
                    state(abroad),
                    elsewhere.name
                )));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends the guest.
    pub fn end(self) -> Result<()> {
        guest::delete(&self.lab.hosts[self.at])
    }
}

/// Tells whoever watches.
pub fn tell(n: usize, trial: &Trial, what: &str) {
    let why = trial.record.error.as_ref().map(|error| format!(" [{}]", error.code)).unwrap_or_default();
    say(&format!(
        "{n} {}: {what}: {}{why}, {:.2} s",
        mode_name(trial.mode),
        trial.outcome.name(),
        trial.total_s
    ));
}
