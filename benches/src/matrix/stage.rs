//! A setting on its stage: two hosts, the guest, and QEMU's hosts and guest beside them where they are asked for.

use std::path::PathBuf;

use anyhow::{Result, bail};
use migrated_api::{MigrationState, TransportKind};

use super::axes::Variant;
use super::file::Rounds;
use super::run::{Outcome, Run};
use super::setting::Setting;
use super::summary;
use crate::journey::Traveller;
use crate::lab::{Lab, Plan};
use crate::payload::Payload;
use crate::qemu;
use crate::report::say;

/// The programs that are compared.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `migrated`.
    pub migrated: PathBuf,
    /// QEMU.
    pub qemu: qemu::Program,
}

/// Whose guest runs; the other stands still meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    Migrated,
    Qemu,
}

impl System {
    const fn of(variant: &Variant) -> Self {
        match variant {
            Variant::Migrated { .. } => Self::Migrated,
            Variant::Qemu { .. } => Self::Qemu,
        }
    }
}

/// Tries all variants of a setting in turn, round by round, until their figures are certain enough or rounds are used
/// up; gives each run to `keep`. A run in which something was lost is the last.
///
/// # Errors
/// The stage can't be set, a system refuses a request, or `keep` fails.
pub fn play(
    setting: &Setting,
    rounds: &Rounds,
    programs: &Programs,
    mut keep: impl FnMut(&Run) -> Result<()>,
) -> Result<Vec<Run>> {
    let tls =
        |variant: &Variant| matches!(variant, Variant::Migrated { transport: TransportKind::TcpTls, .. });
    let plan = Plan {
        binary: programs.migrated.clone(),
        rate: setting.link.0,
        config: String::new(),
        certificates: setting.variants.iter().any(tls),
    };
    let lab = Lab::new(&plan)?;
    let payload = Payload::of(&lab, setting.link.0)?;
    say(&format!("TCP payload {:.1} Mbit/s ({})", payload.bps / 1e6, payload.how));
    let mut stage = Stage::set(setting, &lab, &plan, programs, &payload)?;
    let mut runs: Vec<Run> = Vec::new();
    for round in 1..=rounds.warm_up + rounds.most {
        let warm_up = round <= rounds.warm_up;
        // Each goes first once, and both ways over the link.
        let first = round as usize % setting.variants.len();
        for variant in setting.variants[first..].iter().chain(&setting.variants[..first]) {
            if summary::hopeless(&runs, variant) {
                continue;
            }
            let run = stage.run(*variant, round, warm_up)?;
            tell(&run);
            keep(&run)?;
            let lost = run.outcome == Outcome::Lost;
            runs.push(run);
            if lost {
                return Ok(runs);
            }
        }
        if round >= rounds.warm_up + rounds.least && summary::certain(&runs, rounds) {
            break;
        }
    }
    stage.end()?;
    Ok(runs)
}

struct Stage<'a> {
    setting: &'a Setting,
    payload_bps: f64,
    ours: Option<Traveller<'a>>,
    theirs: Option<qemu::Traveller>,
    awake: Option<System>,
}

impl<'a> Stage<'a> {
    fn set(
        setting: &'a Setting,
        lab: &'a Lab,
        plan: &Plan,
        programs: &Programs,
        payload: &Payload,
    ) -> Result<Self> {
        let guest = setting.guest.guest(payload.bps);
        let uses = |system| setting.variants.iter().any(|variant| System::of(variant) == system);
        let mut stage = Self { setting, payload_bps: payload.bps, ours: None, theirs: None, awake: None };
        if uses(System::Migrated) {
            stage.ours = Some(Traveller::new(lab, &guest)?);
            stage.awake = Some(System::Migrated);
        }
        if uses(System::Qemu) {
            stage.rest()?;
            stage.theirs = Some(qemu::Traveller::new(lab, plan, programs.qemu.clone(), &guest)?);
            stage.awake = Some(System::Qemu);
        }
        Ok(stage)
    }

    /// Stops whichever guest runs.
    fn rest(&mut self) -> Result<()> {
        match self.awake.take() {
            Some(System::Migrated) => self.ours.as_ref().map_or(Ok(()), Traveller::rest),
            Some(System::Qemu) => self.theirs.as_mut().map_or(Ok(()), qemu::Traveller::rest),
            None => Ok(()),
        }
    }

    /// Lets only this guest run.
    fn wake(&mut self, system: System) -> Result<()> {
        if self.awake == Some(system) {
            return Ok(());
        }
        self.rest()?;
        match system {
            System::Migrated => self.ours.as_ref().map_or(Ok(()), Traveller::wake)?,
            System::Qemu => self.theirs.as_mut().map_or(Ok(()), qemu::Traveller::wake)?,
        }
        self.awake = Some(system);
        Ok(())
    }

    fn run(&mut self, variant: Variant, round: u32, warm_up: bool) -> Result<Run> {
        self.wake(System::of(&variant))?;
        let blank = Run {
            scenario: self.setting.scenario.clone(),
            aim: self.setting.aim.clone(),
            link: self.setting.link,
            guest: self.setting.guest.clone(),
            variant,
            round,
            warm_up,
            outcome: Outcome::Completed,
            problems: Vec::new(),
            payload_bps: self.payload_bps,
            nonzero_bytes: self.setting.guest.nonzero_bytes(),
            seen: Default::default(),
            record: None,
            arrival: None,
            qemu: None,
        };
        match (variant, &mut self.ours, &mut self.theirs) {
            (Variant::Migrated { mode, transport, channels }, Some(ours), _) => {
                let made = ours.go(&self.setting.limits.request(mode, transport, channels))?;
                let converged = made.record.state == Some(MigrationState::Completed);
                let gave_up = made.record.error.as_ref().is_some_and(|error| error.code == "not_converged");
                let (outcome, problems) = match (converged, gave_up, made.losses.is_empty()) {
                    (true, _, true) => (Outcome::Completed, Vec::new()),
                    (_, true, true) => (Outcome::NotConverged, Vec::new()),
                    _ => (Outcome::Lost, made.problems()),
                };
                let (seen, record, arrival) = (made.seen, Some(made.record), made.arrival);
                Ok(Run { outcome, problems, seen, record, arrival, ..blank })
            }
            (Variant::Qemu { method, channels }, _, Some(theirs)) => {
                match theirs.go(&self.setting.limits.qemu(method, channels)) {
                    Ok(qemu::Moved { seen, converged, migration }) => {
                        let outcome = if converged { Outcome::Completed } else { Outcome::NotConverged };
                        Ok(Run { outcome, seen, qemu: Some(migration), ..blank })
                    }
                    Err(error) => {
                        let problems = vec![format!("{error:#}")];
                        Ok(Run { outcome: Outcome::Lost, problems, ..blank })
                    }
                }
            }
            _ => bail!("there is no guest for {variant}"),
        }
    }

    /// Ends our guest where it should be; QEMU's goes with its hosts.
    fn end(self) -> Result<()> {
        self.ours.map_or(Ok(()), Traveller::end)
    }
}

fn tell(run: &Run) {
    let ms = |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.2} ms"));
    let kind = if run.warm_up { "warm-up" } else { "run" };
    let end = match run.outcome {
        Outcome::Completed => String::new(),
        Outcome::NotConverged => ", did not converge".into(),
        Outcome::Lost => format!(", LOST: {}", run.problems.join("; ")),
    };
    say(&format!(
        "{kind} {} {}: total {:.3} s, downtime {}, gap {}{end}",
        run.round,
        run.variant,
        run.seen.total_s,
        ms(run.seen.downtime_ms),
        ms(run.seen.gap_ms)
    ));
}
