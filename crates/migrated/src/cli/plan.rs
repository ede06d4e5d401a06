//! `migrate --plan`: what a migration would cost.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use migrated_api::{LinkSource, MigrationPlan, Mode, ModePrediction, PlanMigration, StartMigration};

use super::output::{Output, table};
use crate::client::ApiClient;
use crate::units::{self, show_bit_rate, show_bytes, show_us};

/// Besides the time that the guest is watched: a source asks its destination, and measures the link to it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked of a migration that is only thought of.
#[derive(Debug, Args)]
#[command(next_help_heading = "Plan")]
pub struct PlanArgs {
    /// Say what each mode would cost and what `auto` would do; move nothing.
    #[arg(long, conflicts_with = "watch")]
    plan: bool,
    /// Payload that the link carries, e.g. 1gbit, instead of measuring it.
    #[arg(long, value_name = "RATE", value_parser = units::bit_rate, requires = "plan")]
    link: Option<u64>,
    /// Round trip time to the destination, e.g. 10ms, instead of measuring it.
    #[arg(long, value_name = "TIME", value_parser = units::duration, requires = "plan")]
    rtt: Option<Duration>,
    /// How long the guest is watched, 60ms to 10s [default: 600ms].
    #[arg(long, value_name = "TIME", value_parser = units::duration, requires = "plan")]
    sample: Option<Duration>,
}

impl PlanArgs {
    /// Whether a plan is wanted, not a migration.
    pub const fn is_asked(&self) -> bool {
        self.plan
    }

    /// The question about that migration.
    pub fn about(&self, migration: StartMigration) -> PlanMigration {
        PlanMigration {
            migration,
            link_bps: self.link,
            rtt_us: self.rtt.map(|time| time.as_secs_f64() * 1e6),
            sample_ms: self.sample.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX)),
        }
    }
}

/// Asks, and shows the answer. It fails when the destination would refuse the guest.
pub async fn run(client: &ApiClient, output: Output, vm: &str, request: PlanMigration) -> Result<ExitCode> {
    let path = format!("/v1/vms/{vm}/migrations/plan");
    let plan: MigrationPlan = client.post(&path, &request, PATIENCE).await?;
    output.value(&plan, for_people)?;
    Ok(if plan.admission.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn for_people(plan: &MigrationPlan) -> String {
    let predicted = &plan.prediction;
    let modes =
        [("pre-copy", &predicted.precopy), ("hybrid", &predicted.hybrid), ("post-copy", &predicted.postcopy)];
    let costs = table(
        &["mode", "total", "downtime", "sent", "rounds", "verdict"],
        modes.into_iter().map(|(name, mode)| row(name, mode)),
    );
    let facts = table(&[], facts(plan));
    let basis: Vec<_> = plan.rests_on.iter().map(|what| format!("  - {what}")).collect();
    let against: Vec<_> =
        plan.admission.reasons.iter().map(|r| format!("  - {}: {}", r.code, r.detail)).collect();
    let admission = match plan.admission.is_ok() {
        true => format!("{} would take the guest.", plan.to),
        false => format!("{} would refuse the guest:\n{}", plan.to, against.join("\n")),
    };
    format!(
        "{costs}\n\n{facts}\n\nThese numbers rest on this (confidence {:.2}):\n{}\n\n{admission}\n{}",
        predicted.confidence,
        basis.join("\n"),
        sentence(plan),
    )
}

fn row(name: &str, mode: &ModePrediction) -> Vec<String> {
    let verdict = match mode {
        ModePrediction { possible: false, .. } => "not possible",
        ModePrediction { converges: false, .. } => "does not converge",
        ModePrediction { within_limits: false, .. } => "exceeds the limits",
        _ => "ok",
    };
    // The total of what does not converge is when it would be given up.
    let bound = if mode.converges { "" } else { "> " };
    vec![
        name.to_owned(),
        format!("{bound}{}", show_us(mode.total_ms * 1e3)),
        show_us(mode.downtime_ms * 1e3),
        format!("{bound}{}", show_bytes(mode.bytes)),
        mode.rounds.to_string(),
        verdict.to_owned(),
    ]
}

fn facts(plan: &MigrationPlan) -> Vec<Vec<String>> {
    let MigrationPlan { prediction, guest, link, .. } = plan;
    let bytes = |pages: u64| show_bytes(pages.saturating_mul(4096));
    let windows: Vec<_> = guest
        .writes
        .iter()
        .map(|window| {
            format!("{:.0} pages/s in {}", window.pages_per_second(), show_us(window.window_ms * 1e3))
        })
        .collect();
    let source = |source| match source {
        LinkSource::Given => "given",
        LinkSource::LastMigration => "as in the last migration",
        LinkSource::Probe => "measured",
    };
    let fact = |name: &str, value: String| vec![name.to_owned(), value];
    vec![
        fact("memory", format!("{} of {} with content", bytes(guest.nonzero_pages), bytes(guest.ram_pages))),
        fact("writes", windows.join(", ")),
        fact("working set", bytes(prediction.working_set_pages)),
        fact("link", format!("{} ({})", show_bit_rate(link.bps as f64), source(link.source))),
        fact("round trip", format!("{} ({})", show_us(link.rtt_us), source(link.rtt_source))),
    ]
}

/// What `auto` would do.
fn sentence(plan: &MigrationPlan) -> String {
    let mode = match plan.recommended {
        Mode::Precopy | Mode::Auto => "move the guest by pre-copy",
        Mode::Hybrid => "copy memory once, then switch to post-copy (hybrid)",
        Mode::Postcopy => "switch to post-copy at once",
    };
    format!("auto would {mode}: {}.", plan.reason)
}
