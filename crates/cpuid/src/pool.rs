//! The highest common baseline of several hosts, what each loses by it, and who limits it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::baseline::hazards;
use crate::xstate::Layout;
use crate::{
    Baseline, CpuTable, CustomBaseline, Feature, FeatureSet, HostCpu, Kind, Level, Vendor, VendorsDiffer,
};

/// Why there is no common baseline.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// No host to begin with.
    #[error("a baseline of no hosts was asked for; name at least one")]
    Empty,
    /// CPUs of different vendors.
    #[error(transparent)]
    Vendors(#[from] VendorsDiffer),
    /// CPUs for which there is no ladder.
    #[error("CPUs of {0} have no ladder of baselines; there are GenuineIntel and AuthenticAMD")]
    Vendor(String),
    /// Not even the lowest level.
    #[error("the hosts have less in common than the lowest baseline; {host} lacks {lacking} of {level}")]
    BelowLowest {
        /// A host that lacks something.
        host: String,
        /// The lowest level.
        level: &'static str,
        /// What it lacks.
        lacking: FeatureSet,
    },
}

/// The highest common baseline of several hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolBaseline {
    /// The named baseline that has most of what all have, with the parts that all have.
    pub name: String,
    /// The highest level of the x86-64 psABI that all have.
    pub x86_64_level: Option<String>,
    /// As a file for `--cpu-baseline`: all that the hosts have in common, so a little more than the name alone.
    pub custom: CustomBaseline,
    /// Everything that they have in common.
    pub features: FeatureSet,
    /// What the name alone does not have of it.
    pub beyond: FeatureSet,
    /// The features that truly can't be used where they are hidden, of those that some host loses.
    pub lost_disabled: FeatureSet,
    /// Those that are only hidden: software that does not ask CPUID finds them working.
    pub lost_hidden: FeatureSet,
    /// What each host loses.
    pub hosts: Vec<HostCost>,
    /// Which hosts limit which feature.
    pub limits: Vec<Limit>,
}

/// What a host loses by a baseline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostCost {
    /// The host.
    pub host: String,
    /// The highest named baseline that it has by itself.
    pub best: Option<String>,
    /// The features that it offers and the baseline has not.
    pub loses: FeatureSet,
}

/// A feature that is not in a baseline because of some hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Limit {
    /// The feature.
    pub feature: Feature,
    /// The hosts that don't offer it.
    pub hosts: Vec<String>,
}

impl PoolBaseline {
    /// Of these hosts.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn of(hosts: &[HostCpu]) -> Result<Self, PoolError> {
        let mut tables = hosts.iter().map(|host| Baseline::of_host(host).table(host));
        let first = tables.next().ok_or(PoolError::Empty)?;
        let common = tables.try_fold(first, |common, table| common.intersect(&table))?;
        let id = common.cpuid.vendor();
        let vendor = Vendor::of(&id).ok_or(PoolError::Vendor(id))?;
        let features = with_usual_layout(&common, vendor).features() - made_here();
        let name = name_of(vendor, features).ok_or_else(|| below_lowest(features, hosts))?;
        let named = Baseline::level(&name).map_or(FeatureSet::EMPTY, |baseline| baseline.features);
        let beyond = features - named;
        let offers: Vec<_> = hosts.iter().map(|host| (host, host.offered() - hazards())).collect();
        let lost = offers.iter().fold(FeatureSet::EMPTY, |any, (_, offer)| any | *offer) - features;
        let disabled = lost.iter().filter(|feature| feature.masking().disables(vendor.id())).collect();
        Ok(Self {
            custom: CustomBaseline {
                name: None,
                base: name.clone(),
                add: beyond.iter().map(|feature| feature.name().to_owned()).collect(),
                remove: Vec::new(),
                physical_address_bits: Some(common.physical_address_bits()),
            },
            x86_64_level: Level::best(None, features).map(|level| level.name.to_owned()),
            name,
            features,
            beyond,
            lost_disabled: disabled,
            lost_hidden: lost - disabled,
            hosts: offers.iter().map(|(host, offer)| HostCost::of(host, *offer - features)).collect(),
            limits: lost.iter().map(|feature| Limit::of(feature, &offers)).collect(),
        })
    }
}

impl HostCost {
    fn of(host: &HostCpu, loses: FeatureSet) -> Self {
        Self { host: host.identity.name.clone(), best: best_name(host), loses }
    }
}

impl Limit {
    fn of(feature: Feature, offers: &[(&HostCpu, FeatureSet)]) -> Self {
        let without = offers.iter().filter(|(_, offer)| !offer.contains(feature));
        Self { feature, hosts: without.map(|(host, _)| host.identity.name.clone()).collect() }
    }
}

/// Hazards, which all baselines show, and what the VMM makes.
fn made_here() -> FeatureSet {
    let synthetic = Feature::all().filter(|feature| feature.kind() == Kind::Synthetic);
    hazards() | synthetic.collect()
}

/// A named baseline has its vendor's usual XSAVE layout: without the components that these hosts have elsewhere.
fn with_usual_layout(common: &CpuTable, vendor: Vendor) -> CpuTable {
    let mut table = common.clone();
    let usual = Layout::usual(vendor.id(), common.features());
    table.set_layout(&Layout::of(&common.cpuid).common(&usual));
    table.prune();
    table
}

/// The named baseline within `features` that has most of them, with all parts that are: a level of the
/// vendor's ladder, or of the psABI for CPUs that fit none or only a low one.
pub(crate) fn name_of(vendor: Vendor, features: FeatureSet) -> Option<String> {
    let best = |vendor| Level::best(vendor, features).map(|level| with_parts(level, features));
    let (vendors, neutral) = (best(Some(vendor)), best(None));
    let more = |a: &(String, usize), b: &(String, usize)| if b.1 > a.1 { b.0.clone() } else { a.0.clone() };
    match (vendors, neutral) {
        (Some(vendors), Some(neutral)) => Some(more(&vendors, &neutral)),
        (one, other) => one.or(other).map(|(name, _)| name),
    }
}

/// The level's name with all its parts within `features`, and how many features that is.
fn with_parts(level: &Level, features: FeatureSet) -> (String, usize) {
    let within = level.parts.iter().filter(|(_, part)| part.is_subset(&features));
    let all = within.clone().fold(level.core, |all, (_, part)| all | *part);
    let name = level.name_with(within.map(|(name, _)| *name));
    (name, all.len())
}

/// The highest named baseline that a host has by itself.
#[must_use]
pub fn best_name(host: &HostCpu) -> Option<String> {
    name_of(Vendor::of(&host.vendor())?, host.offered())
}

fn below_lowest(features: FeatureSet, hosts: &[HostCpu]) -> PoolError {
    let lowest = Level::ladder(None).next().expect("a ladder has levels");
    let lacking = lowest.core - features;
    let host = hosts.iter().find(|host| !(lacking - host.offered()).is_empty()).or(hosts.first());
    PoolError::BelowLowest {
        host: host.map(|host| host.identity.name.clone()).unwrap_or_default(),
        level: lowest.name,
        lacking,
    }
}
