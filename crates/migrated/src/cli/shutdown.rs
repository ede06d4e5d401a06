//! `migrated vm shutdown`: press the power button and wait for what comes of it.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use migrated_api::{Vm, VmState};

use super::output::Output;
use crate::client::ApiClient;
use crate::units;

/// Between two looks at whether the guest is off.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub struct ShutdownArgs {
    /// Name or id of the VM.
    vm: String,
    /// How long to wait until the guest is off; 0 doesn't wait.
    #[arg(long, default_value = "60s", value_parser = units::duration_or_none)]
    timeout: Duration,
}

pub async fn run(client: &ApiClient, output: Output, args: ShutdownArgs) -> Result<()> {
    let ShutdownArgs { vm, timeout } = args;
    let mut shown: Vm = client.post_empty(&format!("/v1/vms/{vm}/shutdown")).await?;
    if !timeout.is_zero() {
        // By its id: another VM may get the name.
        let path = format!("/v1/vms/{}", shown.id);
        let off = async {
            while shown.state != VmState::Stopped {
                if matches!(shown.state, VmState::Crashed | VmState::Failed) {
                    bail!(
                        "{} {}: {}",
                        shown.name,
                        shown.state,
                        shown.error.as_deref().unwrap_or("no reason known")
                    );
                }
                tokio::time::sleep(LOOK).await;
                shown = client.get(&path).await?;
            }
            Ok(())
        };
        match tokio::time::timeout(timeout, off).await {
            Ok(off) => off?,
            Err(_) => bail!(
                "the power button of {vm} is pressed and the guest is not off after {timeout:?}: wait longer \
                 (--timeout), see what its console says, or delete the VM to end it by force"
            ),
        }
    }
    output.value(&shown, |vm| format!("{} {}", vm.name, vm.state))
}
