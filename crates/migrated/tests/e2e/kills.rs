//! kill -9 of any process at any moment of a migration.

use std::fmt;

use migrated_api::{MigrationRecord, MigrationState, Vm, VmState};
use migrated_testkit::{Rng, require, wait_until};
use rustix::process::Signal;
use serde_json::json;

use crate::guest::{Workload, assert_runs_only};
use crate::host::{Host, PATIENCE};
use crate::lab::Lab;
use crate::netns::signal;
use crate::witness::Witness;

/// Rounds, unless the environment's `MIGRATED_E2E_KILLS` says otherwise; `MIGRATED_E2E_SEED` replays some.
const ROUNDS: u64 = 40;
const SEED: u64 = 2;

const GUEST: Workload<'_> = Workload {
    name: "g",
    vcpus: 2,
    memory_mib: 32,
    parameters: "hot=4M rate=100000 pattern=random content=random fill=6M check=max",
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    SourceVm,
    DestinationVm,
    SourceDaemon,
    DestinationDaemon,
}

/// One round: who is killed, and when.
#[derive(Debug)]
struct Plan {
    victim: Victim,
    /// The state that the source must have told first.
    after: MigrationState,
    /// Looks at the guest's copies between that and the kill.
    looks: u64,
    /// Whether the destination's VM process is frozen over the kill, so that what was sent to it stays unanswered.
    frozen: bool,
    /// Looks between a daemon's death and its return.
    absence: u64,
    verify: &'static str,
}

impl Plan {
    fn draw(rng: &mut Rng) -> Self {
        let pick = |rng: &mut Rng, count: usize| rng.below(count as u64) as usize;
        let victims =
            [Victim::SourceVm, Victim::DestinationVm, Victim::SourceDaemon, Victim::DestinationDaemon];
        let states = [
            MigrationState::Negotiating,
            MigrationState::Preflight,
            MigrationState::Precopy,
            MigrationState::Precopy,
            MigrationState::StopAndCopy,
            MigrationState::StopAndCopy,
            MigrationState::Switchover,
        ];
        let after = states[pick(rng, states.len())];
        // Pre-copy takes about half a second here, all that follows some ten ms.
        let span = if after == MigrationState::Precopy { 200 } else { 8 };
        Self {
            victim: victims[pick(rng, victims.len())],
            after,
            looks: rng.below(span),
            frozen: rng.below(4) == 0,
            absence: rng.below(100),
            verify: ["off", "before", "after"][pick(rng, 3)],
        }
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn whoever_is_killed_whenever_one_copy_runs_or_its_own_process_was_killed() {
    require!(Kvm, Netns);
    let (rounds, seed) =
        (from_environment("MIGRATED_E2E_KILLS", ROUNDS), from_environment("MIGRATED_E2E_SEED", SEED));
    let mut lab = Lab::new();
    GUEST.create(&lab.a);
    let mut tally = Tally::default();
    for round in 0..rounds {
        let plan = Plan::draw(&mut Rng::new(seed.wrapping_add(round << 32)));
        eprintln!("round {round} of seed {seed}: {plan:?}");
        let from_a = lab.a.find("g").is_some();
        let story = one_round(&mut lab, from_a, &plan);
        eprintln!("round {round}: {story}");
        tally.add(&story);
        start_afresh(&lab);
    }
    eprintln!("{tally:?}");
}

/// What a round came to.
struct Story {
    record: MigrationRecord,
    /// Where the guest runs, if it does.
    runs: Option<&'static str>,
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.record.state.map_or("none", |state| state.name());
        let error = self.record.error.as_ref().map_or("", |error| &error.message);
        write!(f, "{state}, runs at {:?} ({error})", self.runs)
    }
}

#[derive(Debug, Default)]
struct Tally {
    moved: u32,
    stayed: u32,
    lost: u32,
}

impl Tally {
    fn add(&mut self, story: &Story) {
        match (story.runs, story.record.state) {
            (None, _) => self.lost += 1,
            (Some(_), Some(MigrationState::Completed)) => self.moved += 1,
            (Some(_), _) => self.stayed += 1,
        }
    }
}

fn one_round(lab: &mut Lab, from_a: bool, plan: &Plan) -> Story {
    let (from, to) = if from_a { (&mut lab.a, &mut lab.b) } else { (&mut lab.b, &mut lab.a) };
    let before = from.vm("g");
    let source_pid = before.pid.unwrap();
    let console = from.run(&["vm", "console", "g"]).stdout;
    let mut witness = Witness::of(source_pid);
    let request = json!({
        "to": to.name, "mode": "precopy", "verify": plan.verify, "bandwidth_bps": 200_000_000, "timeout_s": 0.7,
        "on_timeout": "stop", "max_downtime_ms": 5,
        // Who was killed does not come back.
        "reconnect_window_ms": 0,
    });
    let begun = from.migrate("g", &request);
    let reached = |state: &str| state == plan.after.name();
    let seen = from.api.follow(&begun.id).find(|state| reached(state));
    for _ in 0..plan.looks {
        witness.look(to);
    }
    let destination_pid = to.vm_processes().first().copied();
    let frozen = destination_pid.filter(|_| plan.frozen && plan.victim != Victim::DestinationVm);
    if let Some(pid) = frozen {
        signal(pid, Signal::STOP);
    }
    let killed = kill(plan.victim, from, to, source_pid, destination_pid);
    for _ in 0..plan.absence {
        witness.look(to);
    }
    if let Some(pid) = frozen {
        signal(pid, Signal::CONT);
    }
    match plan.victim {
        Victim::SourceDaemon => from.start_daemon(),
        Victim::DestinationDaemon => to.start_daemon(),
        Victim::SourceVm | Victim::DestinationVm => {}
    }
    wait_until("both ends have ended the migration", PATIENCE, || {
        witness.look(to);
        [&*from, &*to].iter().all(|host| {
            let known = host.migrations().into_iter().find(|record| record.id == begun.id);
            let over = known.is_none_or(|record| record.state.is_some_and(|state| state.is_final()));
            // An empty VM goes away just behind the end of its migration.
            let empty = |vm: Vm| matches!(vm.state, VmState::Starting | VmState::Incoming);
            over && !host.find("g").is_some_and(empty)
        })
    });
    let record = from.migration(&begun.id);
    let (source, destination) = (from.find("g"), to.find("g"));
    let what = format!("{plan:?}, seen {seen:?}, killed {killed}: {source:?} {destination:?} {record:#?}");
    let runs = judge(plan.victim, killed, from, to, &record, &witness, &what);
    if runs.is_none() && source.is_some() {
        // A guest that is new may have printed more since.
        assert!(from.run(&["vm", "console", "g"]).stdout.starts_with(&console), "the console is kept");
    }
    lab.await_tidy();
    Story { record, runs }
}

/// Kills; says whether there was such a process at the moment.
fn kill(victim: Victim, from: &mut Host, to: &mut Host, source: u32, destination: Option<u32>) -> bool {
    match victim {
        Victim::SourceVm => signal(source, Signal::KILL),
        Victim::DestinationVm => match destination {
            Some(pid) => signal(pid, Signal::KILL),
            None => return false,
        },
        Victim::SourceDaemon => from.kill_daemon(),
        Victim::DestinationDaemon => to.kill_daemon(),
    }
    true
}

/// Checks what became of the guest, and says where it runs.
#[track_caller]
fn judge(
    victim: Victim,
    killed: bool,
    from: &Host,
    to: &Host,
    record: &MigrationRecord,
    witness: &Witness,
    what: &str,
) -> Option<&'static str> {
    let is = |vm: &Option<Vm>, state| vm.as_ref().is_some_and(|vm| vm.state == state);
    let (source, destination) = (from.find("g"), to.find("g"));
    let completed = record.state == Some(MigrationState::Completed);
    match (is(&source, VmState::Running), is(&destination, VmState::Running)) {
        (true, true) => panic!("two copies run: {what}"),
        (true, false) => {
            assert!(!completed && !witness.saw_it_run() && destination.is_none(), "{what}");
            assert_runs_only("g", from, to);
            Some(from.name)
        }
        (false, true) => {
            assert!(completed && source.is_none(), "{what}");
            assert_runs_only("g", to, from);
            Some(to.name)
        }
        (false, false) => {
            let vm = match victim {
                // It was in that process, and nothing of it is anywhere else.
                Victim::SourceVm => {
                    assert!(!completed && !witness.saw_it_run() && destination.is_none(), "{what}");
                    source
                }
                // It had been committed there.
                Victim::DestinationVm => {
                    assert!(completed && source.is_none(), "{what}");
                    assert!(record.decisions.iter().any(|decision| decision.decision == "commit"), "{what}");
                    destination
                }
                Victim::SourceDaemon | Victim::DestinationDaemon => panic!("the guest is lost: {what}"),
            };
            let vm = vm.unwrap_or_else(|| panic!("nobody tells that the guest is lost: {what}"));
            assert!(killed && vm.state == VmState::Failed, "{what}");
            // A daemon that was killed in an earlier round was the process's parent: this one can't know the signal.
            let why = vm.error.unwrap_or_default();
            assert!(why.contains("signal: 9") || why.contains("another daemon had started it"), "{what}");
            None
        }
    }
}

/// Makes the guest anew when it was lost.
fn start_afresh(lab: &Lab) {
    for host in [&lab.a, &lab.b] {
        if host.find("g").is_some_and(|vm| vm.state == VmState::Failed) {
            host.cli(&["vm", "delete", "g"]);
        }
    }
    lab.await_tidy();
    if lab.a.find("g").is_none() && lab.b.find("g").is_none() {
        GUEST.create(&lab.a);
    }
}
