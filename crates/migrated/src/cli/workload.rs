use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use migrated_vmm::workload::{self, KEYS};
use serde::Serialize;

use super::output::Output;

/// For whoever wants the same guest under another VMM.
#[derive(Debug, Subcommand)]
pub enum WorkloadCommand {
    /// Write the guest as a PVH ELF, e.g. for QEMU's `-kernel FILE -append 'hot=64M rate=max'`.
    #[command(after_help = keys())]
    Build(BuildArgs),
    /// Print, as JSON, the counters in pieces of guest RAM that `workload build` says where to save.
    Counters(CountersArgs),
}

#[derive(Debug, Args)]
pub struct BuildArgs {
    /// File to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Number of vCPUs that it will have, which says how many counters there are.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpus: u32,
}

#[derive(Debug, Args)]
pub struct CountersArgs {
    /// Files with what was saved.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What was written, and where its counters will be.
#[derive(Serialize)]
struct Built {
    image: PathBuf,
    /// Guest-physical address of the counters' first byte.
    counters_address: u64,
    counters_bytes: u64,
}

/// The guest's parameters, for its command line.
fn keys() -> String {
    let keys = KEYS.iter().map(|(key, values, meaning)| format!("  {key}={values}: {meaning}\n"));
    format!("Parameters of the guest:\n{}", keys.collect::<String>())
}

pub fn run(output: Output, command: WorkloadCommand) -> Result<()> {
    match command {
        WorkloadCommand::Build(args) => build(output, args),
        WorkloadCommand::Counters(args) => counters(output, &args),
    }
}

fn build(output: Output, args: BuildArgs) -> Result<()> {
    std::fs::write(&args.out, workload::image())
        .with_context(|| format!("can't write {}", args.out.display()))?;
    let (counters_address, counters_bytes) = workload::counters_range(args.vcpus);
    let built = Built { image: args.out, counters_address, counters_bytes };
    output.value(&built, |built| {
        format!(
            "wrote {}; its counters will be the {} bytes of guest RAM from {:#x} on",
            built.image.display(),
            built.counters_bytes,
            built.counters_address
        )
    })
}

/// An array with an entry for each file; `null` where no such guest ran (yet).
fn counters(output: Output, args: &CountersArgs) -> Result<()> {
    let read = |file: &PathBuf| {
        let bytes = std::fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
        Ok(workload::read_saved(&bytes))
    };
    let all = args.files.iter().map(read).collect::<Result<Vec<_>>>()?;
    output.text(&format!("{}\n", serde_json::to_string(&all)?))
}
