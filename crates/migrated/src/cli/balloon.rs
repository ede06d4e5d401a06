//! `migrated vm balloon`: ask a guest for RAM.

use anyhow::Result;
use clap::Args;
use migrated_api::{Balloon, BalloonTarget, Vm};

use super::output::Output;
use crate::client::ApiClient;
use crate::units;

#[derive(Debug, Args)]
pub struct BalloonArgs {
    /// Name or id of the VM.
    vm: String,
    /// How much of its RAM the guest shall give up in all, e.g. 256M; 0 lets it take everything again. At least 64M
    /// stay the guest's. It takes its time; `vm show` says how far it is.
    #[arg(value_parser = units::size)]
    size: u64,
}

pub async fn run(client: &ApiClient, output: Output, args: BalloonArgs) -> Result<()> {
    let BalloonArgs { vm, size: bytes } = args;
    let vm: Vm = client.put(&format!("/v1/vms/{vm}/balloon"), &BalloonTarget { bytes }).await?;
    output.value(&vm, |vm| {
        let balloon = vm.balloon.map(|balloon| in_words(&balloon)).unwrap_or_default();
        format!("{} {balloon}", vm.name)
    })
}

/// A balloon in a line.
pub fn in_words(balloon: &Balloon) -> String {
    let Balloon { target_bytes, actual_bytes, given_back_bytes } = *balloon;
    format!(
        "{} of {} asked for; {} given back since its boot",
        units::show_bytes(actual_bytes),
        units::show_bytes(target_bytes),
        units::show_bytes(given_back_bytes)
    )
}
