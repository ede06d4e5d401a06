//! Baselines: CPUs that are less than any single host's, so that a guest can move among several.
//!
//! A baseline's **core** is what every CPU of a generation has, whatever its microcode, firmware and kernel.
//! What these decide is in **parts** that are asked for by `+PART`: `spec` for speculation controls, and others
//! such as `pku` or `amx`. A guest's table is made from the baseline alone (in [`build`]), never copied from
//! the host; the host only says whether it can give all of it. So the same baseline is the same table everywhere.

mod amd;
mod build;
mod custom;
mod intel;
mod level;
mod x86_64;

use std::collections::BTreeSet;

use thiserror::Error;

pub use custom::{BaselineSpec, CustomBaseline};
pub(crate) use level::hazards;
pub use level::{Level, SPEC, Vendor};

use crate::{CpuTable, Feature, FeatureSet, HostCpu};

/// The name of the baseline that is everything of one host that is safe to migrate.
pub const HOST: &str = "host";

/// Length of guest-physical addresses that a baseline has unless it says otherwise, in bits: what QEMU's
/// CPU models have. Every 64-bit server CPU has as much.
pub const PHYSICAL_ADDRESS_BITS: u32 = 40;

/// A baseline, its name understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Baseline {
    /// Its name with its parts, e.g. `intel-haswell+spec`; a custom one's own.
    pub name: String,
    /// Whose CPUs it is for; `None` for any.
    pub vendor: Option<Vendor>,
    /// Its features, without the hazards that it also shows.
    pub features: FeatureSet,
    /// What everything else of the table is made from.
    frame: Frame,
    /// Length of guest-physical addresses in bits, where that is not the frame's.
    physical_address_bits: Option<u32>,
}

/// Where signature, brand string, address lengths, XSAVE layout and caches come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    Level(&'static str),
    Host,
}

/// Why there is no such baseline.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BaselineError {
    /// No level of that name.
    #[error("there is no CPU baseline {name:?}{}; `migrated cpu baseline --list` shows all", did_you_mean(.suggestion))]
    UnknownName {
        /// What was asked for.
        name: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// The level has no such part.
    #[error("{level} has no part {part:?}; it has {}", list_parts(.known))]
    UnknownPart {
        /// The level.
        level: String,
        /// What was asked for.
        part: String,
        /// The parts that it has.
        known: Vec<String>,
    },
    /// No feature of that name.
    #[error("there is no CPU feature {name:?}{}", did_you_mean(.suggestion))]
    UnknownFeature {
        /// What was asked for.
        name: String,
        /// What may have been meant.
        suggestion: Option<String>,
    },
    /// A feature that can't be given to a guest that shall move.
    #[error("`add` has {feature}, which no guest gets: {why}; take it out")]
    Withheld {
        /// The feature.
        feature: Feature,
        /// Why not.
        why: &'static str,
    },
    /// A set that no CPU has.
    #[error("{feature} needs {lacking}, which the set lacks; add that too, or remove {feature}")]
    Impossible {
        /// The feature.
        feature: Feature,
        /// What it lacks.
        lacking: FeatureSet,
    },
    /// Added and removed at once.
    #[error("{feature} is both in `add` and in `remove`; decide for one")]
    Contradiction {
        /// The feature.
        feature: Feature,
    },
    /// Addresses that no CPU has.
    #[error("physical_address_bits is {bits}; it must be 36 to 52")]
    AddressBits {
        /// What was asked for.
        bits: u32,
    },
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

fn list_parts(parts: &[String]) -> String {
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

/// The one of `known` that is most like `name`, if any is alike at all.
fn suggest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    /// Below this, names have nothing in common: unlike ones that share a prefix are at about 0.7.
    const ALIKE: f64 = 0.8;
    let scored = known.map(|known| (strsim::jaro_winkler(name, known), known));
    let best = scored.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    (best.0 >= ALIKE).then(|| best.1.to_owned())
}

impl Baseline {
    /// The baseline of that name: a level with parts, as in `intel-haswell+spec+invtsc`, or `host`.
    ///
    /// # Errors
    /// [`BaselineError::UnknownName`] and [`BaselineError::UnknownPart`].
    pub fn named(name: &str, host: &HostCpu) -> Result<Self, BaselineError> {
        if name == HOST {
            return Ok(Self::of_host(host));
        }
        Self::level(name)
    }

    /// As [`named`](Self::named), for names that don't depend on a host.
    ///
    /// # Errors
    /// As there.
    pub fn level(name: &str) -> Result<Self, BaselineError> {
        let mut words = name.split('+');
        let base = words.next().unwrap_or_default();
        let level = Level::named(base).ok_or_else(|| BaselineError::UnknownName {
            name: name.to_owned(),
            suggestion: suggest(base, Level::all().iter().map(|level| level.name).chain([HOST])),
        })?;
        let asked: BTreeSet<&str> = words.collect();
        let mut features = level.core;
        for part in &asked {
            let Some(more) = level.parts.get(part) else {
                return Err(BaselineError::UnknownPart {
                    level: base.to_owned(),
                    part: (*part).to_owned(),
                    known: level.parts.keys().map(|part| (*part).to_owned()).collect(),
                });
            };
            features = features | *more;
        }
        let name = level.name_with(asked.into_iter());
        Ok(Self {
            name,
            vendor: level.vendor,
            features,
            frame: Frame::Level(level.name),
            physical_address_bits: None,
        })
    }

    /// Everything of a host that is safe to migrate.
    #[must_use]
    pub fn of_host(host: &HostCpu) -> Self {
        Self {
            name: HOST.to_owned(),
            vendor: Vendor::of(&host.vendor()),
            features: host.offered(),
            frame: Frame::Host,
            physical_address_bits: None,
        }
    }

    /// The table of a guest of this baseline on a host: a level's is the same on every host of a vendor.
    #[must_use]
    pub fn table(&self, host: &HostCpu) -> CpuTable {
        match self.frame {
            Frame::Host => build::of_host(host, self.features, self.physical_address_bits),
            Frame::Level(name) => {
                let level = Level::named(name).expect("a baseline's level is one");
                let vendor = self.vendor.map_or_else(|| host.vendor(), |vendor| vendor.id().to_owned());
                let bits = self.physical_address_bits.unwrap_or(PHYSICAL_ADDRESS_BITS);
                build::of_level(level, &vendor, self.features, bits)
            }
        }
    }
}
