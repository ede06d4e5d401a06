use anyhow::Result;
use clap::{Args, Subcommand};
use migrated_api::{Encodings, MigrationList, MigrationRecord, RecoverMigration};

use super::cpu::report;
use super::output::{Output, table};
use super::{late, postcopy, predicted, progress, throttle};
use crate::client::ApiClient;
use crate::units::{show_bit_rate, show_bytes, show_us};

#[derive(Debug, Subcommand)]
pub enum MigrationCommand {
    /// List the migrations that the host took or takes part in.
    List,
    /// Show one migration, also after its end.
    Show(ShowArgs),
    /// Give a migration up, unless it is committed.
    Cancel(IdArg),
    /// Try now to make a link anew that was lost while pages followed a guest; to be asked of the source's host.
    Recover(RecoverArgs),
}

#[derive(Debug, Args)]
pub struct IdArg {
    /// Id of the migration.
    id: String,
}

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Id of the migration.
    id: String,
    /// Another address of the destination host, from now on: an IP address, with a port if that differs.
    #[arg(long, value_name = "ADDR")]
    via: Option<String>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Id of the migration.
    id: String,
    /// Stay and show how it goes on.
    #[arg(long)]
    watch: bool,
}

pub async fn run(client: &ApiClient, output: Output, command: MigrationCommand) -> Result<()> {
    match command {
        MigrationCommand::List => {
            let list: MigrationList = client.get("/v1/migrations").await?;
            output.value(&list, list_for_people)
        }
        MigrationCommand::Show(args) => {
            let record = if args.watch {
                progress::watch(client, &args.id, !output.json).await?
            } else {
                client.get(&format!("/v1/migrations/{}", args.id)).await?
            };
            output.value(&record, record_for_people)
        }
        MigrationCommand::Cancel(IdArg { id }) => {
            let record: MigrationRecord = client.post_empty(&format!("/v1/migrations/{id}/cancel")).await?;
            output.value(&record, |record| format!("migration {} is being cancelled", record.id))
        }
        MigrationCommand::Recover(RecoverArgs { id, via }) => {
            let path = format!("/v1/migrations/{id}/recover");
            let record: MigrationRecord =
                client.post(&path, &RecoverMigration { via }, ApiClient::PATIENCE).await?;
            output
                .value(&record, |record| format!("migration {}: trying to reach {}", record.id, record.peer))
        }
    }
}

fn state(record: &MigrationRecord) -> &'static str {
    record.state.map_or("negotiating", |state| state.name())
}

fn list_for_people(list: &MigrationList) -> String {
    let rows = list.migrations.iter().map(|record| {
        vec![
            record.id.clone(),
            format!("{:?}", record.role).to_lowercase(),
            state(record).to_owned(),
            record.vm.clone(),
            record.peer.clone(),
            show_us(record.downtime_us.total),
            show_us(record.total_ms * 1e3),
        ]
    });
    table(&["id", "role", "state", "vm", "peer", "downtime", "total"], rows)
}

/// What compressing pages came to, if any were.
fn compressed(record: &MigrationRecord) -> Option<String> {
    let Encodings { lz4, saved_bytes, compress_ms, .. } = record.encodings;
    (lz4.pages > 0).then(|| {
        format!(
            "{} pages to {} (saved {}, took {})",
            lz4.pages,
            show_bytes(lz4.bytes),
            show_bytes(saved_bytes),
            show_us(compress_ms * 1e3)
        )
    })
}

/// A record as a report.
pub fn record_for_people(record: &MigrationRecord) -> String {
    let down = &record.downtime_us;
    let parts = [
        ("pause", down.pause),
        ("final pages", down.final_pages),
        ("export", down.export),
        ("send", down.send),
        ("import", down.import),
        ("resume", down.resume),
    ];
    let parts: Vec<_> = parts.iter().map(|(part, us)| format!("{part} {}", show_us(*us))).collect();
    let mut rows = vec![
        vec!["migration".into(), record.id.clone()],
        vec!["vm".into(), record.vm.clone()],
        vec![
            "peer".into(),
            format!("{} ({:?}, {:?}, {})", record.peer, record.role, record.mode, record.transport)
                .to_lowercase(),
        ],
        vec!["state".into(), state(record).to_owned()],
    ];
    let mut row =
        |name: &str, value: Option<String>| rows.extend(value.map(|value| vec![name.to_owned(), value]));
    row("error", record.error.as_ref().map(|e| format!("[{}] {}", e.code, e.message)));
    row(
        "total",
        Some(format!("{} (set-up {})", show_us(record.total_ms * 1e3), show_us(record.setup_ms * 1e3))),
    );
    row("downtime", (down.total > 0.0).then(|| format!("{}: {}", show_us(down.total), parts.join(", "))));
    row("guest's gap", record.guest_gap_us.map(show_us));
    rows.extend(late::rows(record));
    let mut row =
        |name: &str, value: Option<String>| rows.extend(value.map(|value| vec![name.to_owned(), value]));
    row(
        "memory",
        Some(format!(
            "{}: {} pages sent, {} of them again, {} zero",
            show_bytes(record.ram.bytes),
            record.ram.pages_sent,
            record.ram.pages_resent,
            record.ram.pages_zero
        )),
    );
    row("compressed", compressed(record));
    rows.extend(postcopy::losses(&record.reconnects));
    rows.extend(postcopy::rows(record));
    rows.extend(throttle::rows(record));
    rows.extend(predicted::rows(record));
    let mut row =
        |name: &str, value: Option<String>| rows.extend(value.map(|value| vec![name.to_owned(), value]));
    row(
        "wire",
        Some(format!(
            "{} sent on {} channels at {}",
            show_bytes(record.wire_bytes.sent),
            record.channels,
            show_bit_rate(record.throughput_bps)
        )),
    );
    row(
        "verified",
        record.verified.as_ref().map(|v| {
            format!(
                "{} pages {}, {} mismatches",
                v.pages,
                format!("{:?}", v.method).to_lowercase(),
                v.mismatches
            )
        }),
    );
    let iterations = record.iterations.iter().map(|i| {
        vec![
            i.n.to_string(),
            i.pages.to_string(),
            show_bytes(i.bytes),
            show_us(i.duration_ms * 1e3),
            format!("{:.0} pages/s", i.dirty_rate_pps),
            format!("{:.0} %", i.throttle_percent),
        ]
    });
    let decisions =
        record.decisions.iter().map(|d| vec![show_us(d.at_ms * 1e3), d.decision.clone(), d.reason.clone()]);
    let tables = [
        Some(table(&[], rows)),
        report::of_record(record.error.as_ref()),
        Some(table(&["iteration", "pages", "bytes", "time", "dirty rate", "throttle"], iterations)),
        Some(table(&["at", "decision", "reason"], decisions)),
    ];
    tables.into_iter().flatten().collect::<Vec<_>>().join("\n\n")
}
