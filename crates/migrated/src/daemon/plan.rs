//! What a migration would cost, found out without beginning one.

use std::time::Duration;

use migrated_api::{
    Admission, GuestSample, LinkSource, MigrationPlan, MigrationState, PlanMigration, PlannedLink, Reason,
    RecordRole, TransportKind, Verify, VmState,
};
use migrated_engine::{DirtySample, PlanInputs};

use super::clocks::{AskedAt, CLOCKS_DISAGREE};
use super::migrate::limits;
use super::peers::peer_failed;
use super::{Daemon, DaemonError, new_id};
use crate::client::{ApiClient, Measured};

/// How long a destination may take to say whether it would take a guest: it may have to read its CPU first.
const PATIENCE: Duration = Duration::from_secs(10);
/// A migration with less payload says little about the link. In bytes.
const ENOUGH_PAYLOAD: u64 = 16 << 20;
/// Links change: what a migration before that found is not used. In ms.
const RECENT_MS: u64 = 24 * 3600 * 1000;
/// What saving, sending and restoring the state is taken to take where no migration to the destination has shown it:
/// an estimate for a guest of few vCPUs.
const STATE_GUESS: Duration = Duration::from_millis(4);
/// The same of connections, preflight and making the empty VM.
const SETUP_GUESS: Duration = Duration::from_millis(200);
const PAGE_SIZE: u64 = migrated_pages::PAGE_SIZE as u64;

/// What the last migration to a destination showed.
struct Former {
    id: String,
    bps: u64,
    setup: Duration,
    state: Duration,
}

impl Daemon {
    /// Says what a migration would cost, and whether the destination would take the guest.
    pub async fn plan(&self, key: &str, request: PlanMigration) -> Result<MigrationPlan, DaemonError> {
        let vm = self.vm(key)?;
        let defaults = &self.config.migration.defaults;
        let limits = limits(&request.migration, defaults)?;
        check_known(&request)?;
        let to = &request.migration.to;
        let peer = self.peer(to)?;
        let transport = request.migration.transport.unwrap_or_else(|| self.config.default_transport());
        self.config.transport(transport).map_err(DaemonError::Transport)?;
        let client = vm.client()?;
        vm.refuse_if_immovable()?;

        let description = client.describe().await.map_err(|e| vm.failed(e))?;
        let incoming = self.incoming_request(&vm, new_id()?, description, transport, &request.migration);
        let failed = |e| peer_failed(to, &e);
        let asked = AskedAt::now();
        let mut admission: Admission =
            peer.post("/v1/incoming/check", &incoming, PATIENCE).await.map_err(failed)?;
        if let Some(Err(detail)) = admission.clock.map(|clock| asked.compare(to, clock)) {
            admission.reasons.push(Reason { code: CLOCKS_DISAGREE.into(), detail });
        }
        // One after the other: a guest that is watched while the link is busy writes less.
        let sample_ms = request.sample_ms.unwrap_or(GuestSample::DEFAULT_MS);
        let guest = client.sample_dirty(sample_ms).await.map_err(|e| vm.failed(e))?;
        let former = self.former(to, transport);
        let link = self.link(&peer, &request, former.as_ref()).await?;

        let before = request.migration.verify.unwrap_or(defaults.verify) == Verify::Before;
        let verified = before.then(|| "memory is to be compared before the guest runs there".to_owned());
        let planned = migrated_engine::plan(&PlanInputs {
            ram_pages: guest.ram_pages,
            nonzero_pages: Some(guest.nonzero_pages),
            link_bps: Some(link.bps),
            rtt: micros(link.rtt_us),
            setup: former.as_ref().map_or(SETUP_GUESS, |former| former.setup),
            state: former.as_ref().map_or(STATE_GUESS, |former| former.state),
            state_bytes: 0,
            harvest: micros(guest.harvest_us),
            writes: samples(&guest),
            no_postcopy: verified.or_else(|| admission.no_postcopy.clone()),
            limits: limits.into(),
        });
        let paused = vm.state().0 == VmState::Paused;
        Ok(MigrationPlan {
            vm: vm.id.clone(),
            to: to.clone(),
            recommended: planned.recommended,
            reason: planned.reason,
            risk: planned.risk,
            prediction: planned.prediction,
            rests_on: rests_on(&guest, paused, &link, former.as_ref()),
            guest,
            link,
            admission,
        })
    }

    /// What the latest migration to that destination showed, if one of late tells enough.
    fn former(&self, to: &str, transport: TransportKind) -> Option<Former> {
        let now = super::vm::unix_ms(std::time::SystemTime::now());
        self.migrations().iter().filter(|migration| migration.peer == to).find_map(|migration| {
            let record = migration.record();
            let tells = record.role == RecordRole::Source
                && record.state == Some(MigrationState::Completed)
                && record.transport == transport.name()
                && record.bandwidth_bps.is_none()
                && record.ram.pages_sent * PAGE_SIZE >= ENOUGH_PAYLOAD
                && record.throughput_bps >= 1.0
                && now.saturating_sub(record.started_unix_ms) < RECENT_MS;
            let down = record.downtime_us;
            tells.then(|| Former {
                id: record.id,
                bps: record.throughput_bps as u64,
                setup: micros(record.setup_ms * 1e3),
                // All that neither pages nor their comparison took.
                state: micros(down.export + down.send + down.import + down.resume),
            })
        })
    }

    /// What the link is like, by whoever knows it best.
    async fn link(
        &self,
        peer: &ApiClient,
        request: &PlanMigration,
        former: Option<&Former>,
    ) -> Result<PlannedLink, DaemonError> {
        let known = (request.link_bps.map(|bps| (bps, LinkSource::Given)))
            .or_else(|| former.map(|former| (former.bps, LinkSource::LastMigration)));
        let to = &request.migration.to;
        let measured = match (known, request.rtt_us) {
            (Some(_), Some(_)) => None,
            (known, _) => {
                let asked = peer.measure("/v1/incoming/probe", known.is_none()).await;
                Some(asked.map_err(|e| peer_failed(to, &e))?)
            }
        };
        let probed = |measured: Option<Measured>| measured?.flood?.rate_bps;
        let (bps, source) = match (known, probed(measured)) {
            (Some(known), _) => known,
            (None, Some(bps)) => ((bps as u64).max(1), LinkSource::Probe),
            (None, None) => {
                return Err(DaemonError::Peer {
                    peer: to.clone(),
                    code: "probe_failed".into(),
                    detail: "too little of what was sent to measure the link came there to tell its rate; say it with \
                             `link_bps` (--link)"
                        .into(),
                });
            }
        };
        let rtt = measured.map_or(Duration::ZERO, |measured| measured.rtt);
        let (rtt_us, rtt_source) = match request.rtt_us {
            Some(us) => (us, LinkSource::Given),
            None => (rtt.as_secs_f64() * 1e6, LinkSource::Probe),
        };
        Ok(PlannedLink { bps, source, rtt_us, rtt_source })
    }
}

/// What is said of link and guest must be possible.
fn check_known(request: &PlanMigration) -> Result<(), DaemonError> {
    let (shortest, longest) = (GuestSample::TIME_MS.start(), GuestSample::TIME_MS.end());
    let faults = [
        (request.link_bps == Some(0))
            .then(|| "link_bps is 0; leave it out to have the link measured".to_owned()),
        // A minute: longer is a slip of the unit.
        request
            .rtt_us
            .filter(|us| !(us.is_finite() && (0.0..=60e6).contains(us)))
            .map(|us| format!("rtt_us is {us}; it must be 0 or more, and a minute at most")),
        request
            .sample_ms
            .filter(|ms| !GuestSample::TIME_MS.contains(ms))
            .map(|ms| format!("sample_ms is {ms}; it must be {shortest} to {longest}")),
    ];
    let reasons: Vec<_> =
        faults.into_iter().flatten().map(|detail| Reason { code: "invalid_plan".into(), detail }).collect();
    if reasons.is_empty() { Ok(()) } else { Err(DaemonError::Invalid(reasons)) }
}

fn samples(guest: &GuestSample) -> Vec<DirtySample> {
    let sample = |window: &migrated_api::WriteWindow| DirtySample {
        window: micros(window.window_ms * 1e3),
        pages: window.pages,
        tracked: true,
    };
    guest.writes.iter().map(sample).collect()
}

fn micros(us: f64) -> Duration {
    Duration::try_from_secs_f64(us / 1e6).unwrap_or_default()
}

/// What the numbers rest on, in words.
fn rests_on(guest: &GuestSample, paused: bool, link: &PlannedLink, former: Option<&Former>) -> Vec<String> {
    let watched: f64 = guest.writes.iter().map(|window| window.window_ms).sum();
    let of_former = former.map_or_else(String::new, |former| former.id.clone());
    vec![
        match paused {
            true => "the guest is paused and writes nothing; when it runs it may".to_owned(),
            false => format!(
                "the guest was watched for {watched:.0} ms, tracked as in a migration; what it does at other times is \
                 not known"
            ),
        },
        match link.source {
            LinkSource::Given => "the link's rate was given".to_owned(),
            LinkSource::LastMigration => format!("the link's rate is what migration {of_former} came to"),
            LinkSource::Probe => {
                "the link's rate was measured by one connection of the daemons' API for a quarter of \
                                  a second: a lower bound"
                    .to_owned()
            }
        },
        match link.rtt_source {
            LinkSource::Given => "the round trip time was given".to_owned(),
            _ => "the round trip time was measured over the daemons' API: an upper bound".to_owned(),
        },
        match former {
            Some(former) => {
                format!("set-up and the state's share of the downtime are those of migration {}", former.id)
            }
            None => format!(
                "set-up and the state's share of the downtime are guesses ({SETUP_GUESS:?}, {STATE_GUESS:?}): no \
                 migration of the last day to there tells more"
            ),
        },
    ]
}
