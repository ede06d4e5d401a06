use std::collections::BTreeMap;

use migrated_cpuid::{
    BaselineSpec, CpuDump, Feature, FeatureSet, HostCpu, HostIdentity, Level, LostFeature, Signature, Vendor,
    best_name,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A host's CPU: what it can give guests, and what keeps it from giving more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostCpuReport {
    /// Path of the dump that this daemon takes for its CPU, for tests only; null for a host's own CPU.
    pub simulated: Option<String>,
    /// Who the host is.
    pub identity: HostIdentity,
    /// The vendor's name in leaf 0, e.g. `GenuineIntel`.
    pub vendor: String,
    /// Family, model and stepping.
    pub signature: Signature,
    /// What new guests may get.
    pub offered: FeatureSet,
    /// What incoming guests may have.
    pub accepted: FeatureSet,
    /// What KVM gives and no new guest gets, with the reason.
    pub withheld: Vec<Withheld>,
    /// What this host's configuration keeps from new guests.
    pub hidden: FeatureSet,
    /// The highest named baseline that it offers.
    pub best: Option<String>,
    /// The highest level of the x86-64 psABI that it offers.
    pub x86_64_level: Option<String>,
    /// The named baseline above the highest, and what is missing for it.
    pub next: Option<NextLevel>,
    /// What the host had once and has no more.
    pub lost: Vec<LostFeature>,
    /// All facts about it, as a file that `cpu baseline` and `cpu check` read.
    pub dump: CpuDump,
}

/// A feature that no new guest gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Withheld {
    /// The feature.
    pub feature: Feature,
    /// Why not.
    pub why: String,
}

/// The level above a host's highest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NextLevel {
    /// Its name.
    pub level: String,
    /// What of its core the host does not offer.
    pub lacks: FeatureSet,
}

impl HostCpuReport {
    /// Of a host's CPU, and where that is from when it isn't the host's own.
    #[must_use]
    pub fn of(host: &HostCpu, simulated: Option<String>) -> Self {
        let (vendor, offered) = (host.vendor(), host.offered());
        let ladder = Vendor::of(&vendor);
        let level = ladder.and_then(|vendor| Level::best(Some(vendor), offered));
        let level = level.or_else(|| Level::best(None, offered));
        let next = level.and_then(|level| level.next(offered));
        let withheld = host.kvm.features();
        let withheld = withheld
            .iter()
            .filter_map(|feature| Some(Withheld { feature, why: feature.withheld()?.to_owned() }));
        let mut dump = CpuDump::of(host);
        dump.source = simulated.as_ref().map(|path| format!("simulated from {path}"));
        Self {
            identity: host.identity.clone(),
            signature: host.signature(),
            accepted: host.accepted(),
            withheld: withheld.collect(),
            hidden: host.hidden,
            best: best_name(host),
            x86_64_level: Level::best(None, offered).map(|level| level.name.to_owned()),
            next: next.map(|(next, lacks)| NextLevel { level: next.name.to_owned(), lacks }),
            lost: host.lost.clone(),
            dump,
            simulated,
            vendor,
            offered,
        }
    }
}

/// Where facts about a host's CPU come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CpuSource {
    /// From a live host: `self` or this host's name, a peer's name in its configuration, or the URL of an API.
    Host(String),
    /// From a file that `migrated cpu dump` wrote.
    // Checked by what knows of formats and versions; serde would only tell which key it misses first.
    #[schema(value_type = CpuDump)]
    Dump(serde_json::Value),
}

/// Asks for the highest common baseline of several hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BaselineRequest {
    /// The hosts, at most [`MAX_HOSTS`](Self::MAX_HOSTS).
    pub hosts: Vec<CpuSource>,
}

impl BaselineRequest {
    /// Most hosts of one request: each may be a question to another daemon.
    pub const MAX_HOSTS: usize = 256;
}

/// Asks whether a guest can run on a host. The guest is a VM of the host that is asked, or what a baseline gives on some host:
/// `vm` or `from`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpuCheck {
    /// Name or id of a VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// The host that the guest would be made on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<CpuSource>,
    /// With `from`: the baseline that it would be made from; `host` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<BaselineSpec>,
    /// The host that the guest would come to; the one that is asked when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<CpuSource>,
}

/// All named baselines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BaselineList {
    /// Ladder by ladder, each from its lowest.
    pub baselines: Vec<BaselineLevel>,
}

impl BaselineList {
    /// All that this build knows.
    #[must_use]
    pub fn all() -> Self {
        Self { baselines: Level::all().iter().map(BaselineLevel::from).collect() }
    }
}

/// One named baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BaselineLevel {
    /// Its name, e.g. `intel-haswell`.
    pub name: String,
    /// For people.
    pub title: String,
    /// Whose CPUs it is for; null for the levels of the x86-64 psABI.
    pub vendor: Option<Vendor>,
    /// The level that it builds on.
    pub on: Option<String>,
    /// What it has that the level before has not.
    pub adds: FeatureSet,
    /// What the level before has that this one has not.
    pub drops: FeatureSet,
    /// What may be had besides by `NAME+PART`.
    pub parts: BTreeMap<String, FeatureSet>,
}

impl From<&Level> for BaselineLevel {
    fn from(level: &Level) -> Self {
        Self {
            name: level.name.to_owned(),
            title: level.title.to_owned(),
            vendor: level.vendor,
            on: level.on.map(str::to_owned),
            adds: level.adds,
            drops: level.drops,
            parts: level.parts.iter().map(|(name, features)| ((*name).to_owned(), *features)).collect(),
        }
    }
}

/// The CPU that a VM was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmCpu {
    /// The baseline that it was made from.
    pub baseline: String,
    /// The highest named baseline within what it has.
    pub best: Option<String>,
    /// What it sees although its baseline has it not: its first host's KVM could not hide it.
    pub unmasked: FeatureSet,
    /// The host that it is on only pretends to have such a CPU, for tests.
    pub simulated: bool,
}
