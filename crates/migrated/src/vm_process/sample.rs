//! Watching a guest for a moment: what it writes, and how much of its RAM has content.

use std::time::{Duration, Instant};

use migrated_control::{ControlError, ErrorKind, GuestSample, WriteWindow};
use migrated_guest::{Guest, GuestError};
use migrated_pages::PageSet;
use migrated_vmm::{RunningVm, Vm};
use parking_lot::{Condvar, Mutex};

use super::errors;
use super::process::Process;

/// Parts of the time that the windows get. They follow each other, and that each is longer than all before it is
/// what tells a fast guest with a small working set from a slow one with a large.
const WINDOWS: [u32; 3] = [1, 3, 8];

/// Lets a migration end a sample. Both claim the guest, and a migration need not wait for curiosity.
#[derive(Default)]
pub struct Watching {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    sampling: bool,
    departures: u32,
}

/// While this lives no sample begins, and none is under way.
pub struct Departure<'a>(&'a Watching);

/// While this lives a sample is under way.
struct Sampling<'a>(&'a Watching);

impl Watching {
    /// Ends a sample that is under way, and keeps others from beginning.
    pub fn end(&self) -> Departure<'_> {
        let mut state = self.state.lock();
        state.departures += 1;
        self.changed.notify_all();
        while state.sampling {
            self.changed.wait(&mut state);
        }
        Departure(self)
    }

    /// Waits until no other sample is under way; `None` when a migration begins.
    fn begin(&self) -> Option<Sampling<'_>> {
        let mut state = self.state.lock();
        while state.sampling && state.departures == 0 {
            self.changed.wait(&mut state);
        }
        if state.departures > 0 {
            return None;
        }
        state.sampling = true;
        Some(Sampling(self))
    }
}

impl Sampling<'_> {
    /// Lets the guest run for so long; `false` when a migration begins before that.
    fn wait_until(&self, until: Instant) -> bool {
        let mut state = self.0.state.lock();
        while state.departures == 0 {
            if self.0.changed.wait_until(&mut state, until).timed_out() {
                return true;
            }
        }
        false
    }
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        self.0.state.lock().departures -= 1;
        self.0.changed.notify_all();
    }
}

impl Drop for Sampling<'_> {
    fn drop(&mut self) {
        self.0.state.lock().sampling = false;
        self.0.changed.notify_all();
    }
}

/// Watches the guest for `sample_ms`.
pub fn sample(process: &Process, vm: &Vm, sample_ms: u32) -> Result<GuestSample, ControlError> {
    let range = GuestSample::TIME_MS;
    if !range.contains(&sample_ms) {
        let message = format!("sample_ms is {sample_ms}; it must be {} to {}", range.start(), range.end());
        return Err(ControlError::new(ErrorKind::InvalidInput, "invalid_sample", message));
    }
    process.refuse_if_arriving()?;
    let begun = Instant::now();
    let (writes, harvest) = watch(&process.watching, vm, Duration::from_millis(sample_ms.into()))?;
    Ok(GuestSample {
        ram_pages: vm.ram().layout().total_pages(),
        nonzero_pages: vm.ram().estimate_nonzero(),
        writes,
        harvest_us: harvest.as_secs_f64() * 1e6,
        took_ms: begun.elapsed().as_secs_f64() * 1e3,
    })
}

/// What is written in each window, and the longest time that finding it out took. The guest is claimed meanwhile.
fn watch(watching: &Watching, vm: &Vm, time: Duration) -> Result<(Vec<WriteWindow>, Duration), ControlError> {
    let sampling = watching.begin().ok_or_else(interrupted)?;
    // Declared after `sampling`, so given back before a migration that waits goes on.
    let mut guest =
        vm.outgoing().map_err(|error| errors::conflict("migration_in_progress", error.to_string()))?;
    let started = guest.start_tracking().map_err(cannot);
    let watched = started.and_then(|()| harvest_windows(&sampling, &mut guest, time));
    // Whatever failed: tracking slows the guest.
    let stopped = guest.stop_tracking().map_err(cannot);
    watched.and_then(|watched| stopped.map(|()| watched))
}

fn harvest_windows(
    sampling: &Sampling<'_>,
    guest: &mut RunningVm,
    time: Duration,
) -> Result<(Vec<WriteWindow>, Duration), ControlError> {
    let (mut writes, mut longest) = (Vec::new(), Duration::ZERO);
    let mut since = Instant::now();
    for part in WINDOWS {
        if !sampling.wait_until(since + time * part / WINDOWS.iter().sum::<u32>()) {
            return Err(interrupted());
        }
        let mut dirty = PageSet::empty(guest.ram().layout());
        let called = Instant::now();
        let pages = guest.harvest(&mut dirty).map_err(cannot)?;
        longest = longest.max(called.elapsed());
        writes.push(WriteWindow { window_ms: (called - since).as_secs_f64() * 1e3, pages });
        since = called;
    }
    Ok((writes, longest))
}

fn interrupted() -> ControlError {
    errors::conflict(
        "migration_in_progress",
        "a migration of this VM has begun; its record has what you want to know",
    )
}

fn cannot(error: GuestError) -> ControlError {
    ControlError::new(ErrorKind::Internal, "guest_not_watched", error.to_string())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_migration_ends_a_sample_and_keeps_others_out_until_it_has_the_guest() {
        let watching = Watching::default();
        thread::scope(|scope| {
            let sampling = watching.begin().unwrap();
            let departing = scope.spawn(|| drop(watching.end()));
            assert!(!sampling.wait_until(Instant::now() + LONG));
            assert!(watching.begin().is_none());
            assert!(!departing.is_finished());
            drop(sampling);
            departing.join().unwrap();
        });
        assert!(watching.begin().unwrap().wait_until(Instant::now()));
    }

    #[test]
    fn samples_wait_for_each_other() {
        let watching = Watching::default();
        thread::scope(|scope| {
            let first = watching.begin().unwrap();
            let second = scope.spawn(|| watching.begin().is_some());
            assert!(!second.is_finished());
            drop(first);
            assert!(second.join().unwrap());
        });
    }
}
