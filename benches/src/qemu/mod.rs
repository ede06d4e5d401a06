//! The same guest under QEMU, moved over a link of the same kind, to be compared with.
//!
//! QEMU is driven over QMP. Its own "downtime" of post-copy is not the guest's pause, so the guest's own account is
//! what counts: its counters are saved out of its RAM and read by `migrated workload counters`.

mod counters;
mod machine;
mod method;
mod qmp;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use migrated_api::HostCpuReport;
use migrated_netns::{ADDRESSES, Pair};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cost::Meter;
use crate::guest::Guest;
use crate::journey::{BASELINE, LONGEST, SETTLE, Seen, WARM_UP};
use crate::lab::{Lab, Plan};
use crate::report::say;
use crate::watch::Course;
use machine::{Ground, Machine};

pub use method::{Method, Request};

/// Where an incoming guest is awaited.
const PORT: u16 = 4444;
/// Time between two looks at the guest's counters.
const PERIOD: Duration = Duration::from_millis(20);

/// Which QEMU.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    root: Option<PathBuf>,
}

impl Program {
    /// The one at `path`; without, the one on PATH, or the one in `root`, a directory to which Debian's packages were
    /// extracted, out of which it takes its libraries and firmware.
    #[must_use]
    pub fn new(path: Option<PathBuf>, root: Option<PathBuf>) -> Self {
        let name = "qemu-system-x86_64";
        let own = || root.as_ref().map_or_else(|| name.into(), |root| root.join("usr/bin").join(name));
        Self { path: path.unwrap_or_else(own), root }
    }

    /// The first line of what it says of itself.
    ///
    /// # Errors
    /// It can't be run.
    pub fn version(&self) -> Result<String> {
        let mut command = Command::new(&self.path);
        self.set_up(&mut command);
        let ran = command.arg("--version").output();
        let ran = ran.with_context(|| format!("can't run {}", self.path.display()))?;
        ensure!(ran.status.success(), "{}: {}", self.path.display(), String::from_utf8_lossy(&ran.stderr));
        Ok(String::from_utf8_lossy(&ran.stdout).lines().next().unwrap_or_default().to_owned())
    }

    /// Makes an extracted one find its libraries and firmware.
    fn set_up(&self, command: &mut Command) {
        let Some(root) = &self.root else { return };
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|folder| root.join(folder));
        command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap_or_default());
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(data));
        }
    }
}

/// One move by QEMU.
#[derive(Clone, Debug)]
pub struct Moved {
    /// What was seen.
    pub seen: Seen,
    /// Whether it came to the other host; else it took too long and was cancelled.
    pub converged: bool,
    /// QEMU's own account, as `query-migrate` gives it.
    pub migration: Value,
}

/// A guest under QEMU on a link of its own.
#[derive(Debug)]
pub struct Traveller {
    machine: Machine,
    started: u32,
    program: Program,
    binary: PathBuf,
    guest: Guest,
    image: counters::Image,
    // Last: they go when no machine uses them any more.
    pair: Pair,
    dir: TempDir,
}

impl Traveller {
    /// Boots the guest, as [`crate::journey::Traveller::new`] does, on a link like that of `lab`.
    ///
    /// # Errors
    /// There is no QEMU, or the guest does not run under it.
    pub fn new(lab: &Lab, plan: &Plan, program: Program, guest: &Guest) -> Result<Self> {
        say("the same guest under QEMU");
        // QEMU doesn't tell a guest the frequency of its TSC, as ours is told.
        let host: HostCpuReport = lab.hosts[0].api.get("/v1/host/cpu")?;
        let mut guest = guest.clone();
        guest.workload += &format!(" vcpus={} tsc_khz={}", guest.vcpus, host.dump.tsc_khz);
        let dir = tempfile::Builder::new().prefix("migrated-qemu-").tempdir()?;
        let pair = Pair::make(plan.rate)?;
        let image = counters::build(&plan.binary, &dir.path().join("guest.elf"), guest.vcpus)?;
        let ground = ground(&pair, &program, &plan.binary, &image, &guest, dir.path());
        let mut machine = Machine::start(&ground, 0, 0, false)?;
        machine.await_ready(&ground)?;
        std::thread::sleep(WARM_UP);
        let binary = plan.binary.clone();
        Ok(Self { machine, started: 1, program, binary, guest, image, pair, dir })
    }

    /// Stops the guest, so that it takes nothing from what is measured meanwhile.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn rest(&mut self) -> Result<()> {
        self.machine.qmp.execute("stop", json!({})).map(drop)
    }

    /// Lets it run on, and warms it up again.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn wake(&mut self) -> Result<()> {
        self.machine.qmp.execute("cont", json!({}))?;
        std::thread::sleep(WARM_UP);
        Ok(())
    }

    /// Moves the guest to the other host.
    ///
    /// # Errors
    /// QEMU refuses or fails, or the guest lost something.
    pub fn go(&mut self, request: &Request) -> Result<Moved> {
        let ground =
            ground(&self.pair, &self.program, &self.binary, &self.image, &self.guest, self.dir.path());
        let (from, to) = (self.machine.host, 1 - self.machine.host);
        let address = format!("tcp:{}:{PORT}", ADDRESSES[to]);
        let mut incoming = Machine::start(&ground, to, self.started, true)?;
        self.started += 1;
        incoming.prepare(request, &self.guest)?;
        incoming.qmp.execute("migrate-incoming", json!({ "uri": address }))?;
        self.machine.prepare(request, &self.guest)?;

        let mut saved = Vec::new();
        look(&mut self.machine, &self.image, &mut saved, Instant::now() + BASELINE)?;
        let before = self.machine.counters(&ground)?;
        let meter = Meter::start(&self.pair, from)?;
        let began = Instant::now();
        self.machine.qmp.execute("migrate", json!({ "uri": address }))?;
        let migration = follow(request, &mut self.machine, &mut incoming, &self.image, &mut saved)?;
        let cost = meter.end()?;
        let converged = migration["status"] == "completed";
        let total_s = match converged {
            true => migration["total-time"].as_f64().context("QEMU does not say how long it took")? / 1e3,
            false => began.elapsed().as_secs_f64(),
        };
        let ended = began + Duration::from_secs_f64(total_s);
        if converged {
            self.machine = incoming;
        }
        look(&mut self.machine, &self.image, &mut saved, Instant::now() + SETTLE)?;
        let after = self.machine.counters(&ground)?;

        let lost = (after.total.errors, after.total.tsc_backward_steps);
        ensure!(lost == (0, 0), "the guest under QEMU found (pages lost, TSC backward): {lost:?}");
        let looks = read(&self.binary, saved)?;
        let course = looks
            .iter()
            .map(|look| (look.at, look.counters.total.pages_written + look.counters.total.pages_read));
        let course = Course::new(course);
        let ms = |us: u64| us as f64 / 1e3;
        // Its own downtime of post-copy is not the guest's pause.
        let downtime_ms = match request.method.switches_first() {
            true => None,
            false => migration["downtime"].as_f64(),
        };
        let seen = Seen {
            downtime_ms,
            // By its second look there the guest has looked at its clock after the switch; later it waits for pages.
            gap_ms: looks
                .iter()
                .filter(|look| look.host == to)
                .nth(1)
                .map(|look| ms(look.counters.gap_since(before.tsc()))),
            stall_ms: Some(ms(after.gap_since(before.tsc()))),
            total_s,
            cost: Some(cost),
            ..Seen::default()
        };
        Ok(Moved { seen: seen.with_work(&course, began, ended), converged, migration })
    }
}

/// Follows a migration to its end, and switches to post-copy as soon as it may when that was asked for. Gives QEMU's last
/// word: that it is completed, or cancelled because it took too long.
fn follow(
    request: &Request,
    from: &mut Machine,
    to: &mut Machine,
    image: &counters::Image,
    saved: &mut Vec<Saved>,
) -> Result<Value> {
    let began = Instant::now();
    let (mut switched, mut gave_up) = (false, false);
    loop {
        let migration: Value = from.migration()?;
        match migration["status"].as_str().unwrap_or_default() {
            "active" if request.method.switches_first() && !switched => {
                from.qmp.execute("migrate-start-postcopy", json!({}))?;
                switched = true;
            }
            "active"
                if !switched && !gave_up && request.timeout.is_some_and(|most| began.elapsed() > most) =>
            {
                from.qmp.execute("migrate_cancel", json!({}))?;
                gave_up = true;
            }
            "completed" => return Ok(migration),
            "cancelled" if gave_up => return Ok(migration),
            "failed" | "cancelled" => bail!("QEMU's migration failed: {migration}"),
            _ => {}
        }
        if from.is_running()? {
            save(from, image, saved)?;
        }
        // One whose migration was cancelled ends.
        if !gave_up && to.is_running()? {
            save(to, image, saved)?;
        }
        ensure!(began.elapsed() < LONGEST, "QEMU's migration takes longer than {LONGEST:?}: {migration}");
        std::thread::sleep(PERIOD);
    }
}

/// Counters that were saved.
#[derive(Debug)]
struct Saved {
    at: Instant,
    host: usize,
    file: PathBuf,
}

/// Counters that were read.
#[derive(Debug)]
struct Look {
    at: Instant,
    host: usize,
    counters: counters::Counters,
}

/// Reads all that was saved, and removes the files.
fn read(binary: &Path, saved: Vec<Saved>) -> Result<Vec<Look>> {
    let files: Vec<_> = saved.iter().map(|saved| saved.file.clone()).collect();
    let read = counters::read(binary, &files)?;
    files.iter().try_for_each(std::fs::remove_file)?;
    let looks = saved.into_iter().zip(read);
    Ok(looks
        .filter_map(|(Saved { at, host, .. }, counters)| Some(Look { at, host, counters: counters? }))
        .collect())
}

fn ground<'a>(
    pair: &'a Pair,
    program: &'a Program,
    binary: &'a Path,
    image: &counters::Image,
    guest: &'a Guest,
    dir: &'a Path,
) -> Ground<'a> {
    Ground { pair, program, binary, image: image.clone(), guest, dir }
}

/// Looks at the guest's counters until a moment.
fn look(
    machine: &mut Machine,
    image: &counters::Image,
    saved: &mut Vec<Saved>,
    until: Instant,
) -> Result<()> {
    while Instant::now() < until {
        save(machine, image, saved)?;
        std::thread::sleep(PERIOD);
    }
    Ok(())
}

fn save(machine: &mut Machine, image: &counters::Image, saved: &mut Vec<Saved>) -> Result<()> {
    saved.push(Saved { at: Instant::now(), host: machine.host, file: machine.save(image)? });
    Ok(())
}
