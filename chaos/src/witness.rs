use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};
use migrated_api::{Vm, VmState};
use migrated_bench::guest::NAME;
use migrated_bench::lab::{Api, Host};

/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(20);

/// Watches the two copies of a guest that moves, and notices when both run.
///
/// The guest counts its rounds in its RAM, which a source shows as long as it keeps its copy. Once a destination was
/// seen running the guest, the source's count must stand still for ever, whatever the daemons say of states.
#[derive(Debug)]
pub struct Witness {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Option<String>>,
}

/// What was seen of the source's copy since the destination ran.
#[derive(Debug, Default)]
struct Seen {
    /// Its count at first.
    stopped_at: Option<u64>,
    destination_ran: bool,
}

impl Seen {
    /// Takes in the destination's state, then the source's count, in the order in which they were read.
    fn look(&mut self, destination_runs: bool, source_rounds: Option<u64>) -> Option<String> {
        self.destination_ran |= destination_runs;
        let rounds = source_rounds.filter(|_| self.destination_ran)?;
        let stopped_at = *self.stopped_at.get_or_insert(rounds);
        (rounds != stopped_at).then(|| {
            format!("two copies ran: the source went from round {stopped_at} to {rounds} after the destination ran")
        })
    }
}

impl Witness {
    /// Begins to watch.
    pub fn start(from: &Host, to: &Host) -> Result<Self> {
        let (from, to) = (from.api.another()?, to.api.another()?);
        let end = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&end);
        let thread =
            std::thread::Builder::new().name("witness".into()).spawn(move || watch(&from, &to, &told))?;
        Ok(Self { end, thread })
    }

    /// Ends, and says what was wrong.
    pub fn end(self) -> Result<Option<String>> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the witness panicked"))
    }
}

fn watch(from: &Api, to: &Api, end: &AtomicBool) -> Option<String> {
    let path = format!("/v1/vms/{NAME}");
    // A daemon that does not know the guest, or does not answer, tells nothing.
    let look = |api: &Api| api.get::<Vm>(&path).ok();
    let mut seen = Seen::default();
    while !end.load(Ordering::Relaxed) {
        let destination_runs = look(to).is_some_and(|vm| vm.state == VmState::Running);
        let rounds = look(from).and_then(|vm| vm.workload).map(|counters| counters.heartbeat);
        let wrong = seen.look(destination_runs, rounds);
        if wrong.is_some() {
            return wrong;
        }
        std::thread::sleep(PERIOD);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::Seen;

    #[test]
    fn a_source_that_goes_on_after_the_destination_ran_is_noticed() {
        let mut seen = Seen::default();
        for (runs, rounds) in
            [(false, Some(1)), (false, Some(5)), (true, Some(7)), (false, None), (true, Some(7))]
        {
            assert_eq!(seen.look(runs, rounds), None);
        }
        assert!(seen.look(false, Some(8)).unwrap().contains("from round 7 to 8"));
    }
}
