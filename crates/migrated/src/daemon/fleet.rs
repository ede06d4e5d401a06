//! Questions about the CPUs of several hosts: what they have in common, and whether a guest of one can run on another.

use std::time::Duration;

use futures_util::future::try_join_all;
use migrated_api::{BaselineRequest, CpuCheck, CpuReport, CpuSource, HostCpuReport, PoolBaseline, Reason};
use migrated_cpuid::{GuestCpu, HostCpu, PoolError};

use super::cpu::{guest_of, parse_dump};
use super::peers::peer_failed;
use super::{Daemon, DaemonError};
use crate::client::ApiClientError;

/// How this host calls itself, besides its name.
const SELF: &str = "self";
/// How long a peer may take to tell of its CPU: it may have to read it first.
const PATIENCE: Duration = Duration::from_secs(10);

impl Daemon {
    /// The highest common baseline of several hosts.
    pub async fn pool_baseline(&self, request: BaselineRequest) -> Result<PoolBaseline, DaemonError> {
        if request.hosts.len() > BaselineRequest::MAX_HOSTS {
            let detail = format!(
                "`hosts` has {}; at most {} are compared at once",
                request.hosts.len(),
                BaselineRequest::MAX_HOSTS
            );
            return Err(invalid("too_many_hosts", detail));
        }
        let asked = request.hosts.iter().enumerate();
        let asked = asked.map(|(n, source)| async move { self.cpu_of(&format!("hosts[{n}]"), source).await });
        let hosts = try_join_all(asked).await?;
        pool_of(&hosts)
    }

    /// Whether a guest can run on a host.
    pub async fn check_cpu(&self, request: CpuCheck) -> Result<CpuReport, DaemonError> {
        let guest = self.guest_of_check(&request).await?;
        let host = match &request.to {
            Some(to) => self.cpu_of("to", to).await?,
            None => self.host_cpu()?.clone(),
        };
        Ok(CpuReport::of(&guest, &host))
    }

    async fn guest_of_check(&self, request: &CpuCheck) -> Result<GuestCpu, DaemonError> {
        match (&request.vm, &request.from, &request.baseline) {
            (Some(vm), None, None) => {
                let vm = self.vm(vm)?;
                Ok(vm.client()?.describe().await.map_err(|e| vm.failed(e))?.cpu)
            }
            (None, Some(from), baseline) => {
                let host = self.cpu_of("from", from).await?;
                guest_of(&host, &baseline.clone().unwrap_or_default())
            }
            (Some(_), None, Some(_)) => {
                Err(invalid("invalid_check", "`baseline` goes with `from`; a VM has its CPU already".into()))
            }
            _ => {
                Err(invalid("invalid_check", "say either `vm` or `from`: whose CPU is to be checked".into()))
            }
        }
    }

    /// The CPU that a source tells of; `place` is where the request has it.
    async fn cpu_of(&self, place: &str, source: &CpuSource) -> Result<HostCpu, DaemonError> {
        match source {
            CpuSource::Host(name) if name == SELF || *name == self.config.name => {
                Ok(self.host_cpu()?.clone())
            }
            CpuSource::Host(name) => self.cpu_of_peer(name).await,
            CpuSource::Dump(dump) => parse_dump(place, &dump.to_string()),
        }
    }

    async fn cpu_of_peer(&self, name: &str) -> Result<HostCpu, DaemonError> {
        let peer = self.peer(name)?;
        let asked = tokio::time::timeout(PATIENCE, peer.get::<HostCpuReport>("/v1/host/cpu")).await;
        let late = |_| Err(ApiClientError::TimedOut { target: name.to_owned(), after: PATIENCE });
        let report = asked.unwrap_or_else(late).map_err(|error| peer_failed(name, &error))?;
        let place = format!("the answer of {name}");
        HostCpu::try_from(report.dump).map_err(|error| DaemonError::InvalidDump { place, error })
    }
}

/// The highest common baseline of those hosts.
pub fn pool_of(hosts: &[HostCpu]) -> Result<PoolBaseline, DaemonError> {
    PoolBaseline::of(hosts).map_err(|error| match error {
        PoolError::Empty => invalid("no_hosts", error.to_string()),
        PoolError::Vendors(_) | PoolError::Vendor(_) | PoolError::BelowLowest { .. } => {
            DaemonError::NoCommonBaseline(error)
        }
    })
}

fn invalid(code: &str, detail: String) -> DaemonError {
    DaemonError::Invalid(vec![Reason { code: code.into(), detail }])
}
