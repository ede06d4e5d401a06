use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Baseline, BaselineError, suggest};
use crate::{Feature, FeatureSet, HostCpu};

/// A baseline as it is asked for: by name, or as a site made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum BaselineSpec {
    /// A level's name with parts, or `host`.
    Named(String),
    /// A site's own.
    Custom(CustomBaseline),
}

/// A site's own baseline: a file of these keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CustomBaseline {
    /// What to call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The baseline to begin with: a level's name with parts, or `host`.
    pub base: String,
    /// Features to add.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<String>,
    /// Features to take out, with all that needs them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// Length of guest-physical addresses in bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_address_bits: Option<u32>,
}

impl Default for BaselineSpec {
    fn default() -> Self {
        Self::Named(super::HOST.to_owned())
    }
}

impl<'de> Deserialize<'de> for BaselineSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not `untagged`, whose errors don't say which key is wrong.
        struct NameOrTable;
        impl<'de> Visitor<'de> for NameOrTable {
            type Value = BaselineSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a CPU baseline's name, or an object with `base`, `add` and `remove`")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<BaselineSpec, E> {
                Ok(BaselineSpec::Named(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BaselineSpec, A::Error> {
                CustomBaseline::deserialize(MapAccessDeserializer::new(map)).map(BaselineSpec::Custom)
            }
        }
        deserializer.deserialize_any(NameOrTable)
    }
}

impl BaselineSpec {
    /// Understands it; `host` is what the baseline `host` means.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn resolve(&self, host: &HostCpu) -> Result<Baseline, Vec<BaselineError>> {
        match self {
            Self::Named(name) => Baseline::named(name, host).map_err(|error| vec![error]),
            Self::Custom(custom) => custom.resolve(host),
        }
    }
}

impl CustomBaseline {
    fn resolve(&self, host: &HostCpu) -> Result<Baseline, Vec<BaselineError>> {
        let mut errors = Vec::new();
        let base = Baseline::named(&self.base, host).map_err(|error| errors.push(error)).ok();
        let add = features(&self.add, &mut errors);
        let remove = features(&self.remove, &mut errors);
        errors.extend((add & remove).iter().map(|feature| BaselineError::Contradiction { feature }));
        errors.extend(
            add.iter()
                .filter_map(|feature| Some(BaselineError::Withheld { feature, why: feature.withheld()? })),
        );
        let bits = self.physical_address_bits;
        errors.extend(
            bits.filter(|bits| !(36..=52).contains(bits)).map(|bits| BaselineError::AddressBits { bits }),
        );
        let Some(base) = base.filter(|_| errors.is_empty()) else { return Err(errors) };
        let features = (base.features - remove).closed() | add;
        let impossible =
            features.unmet().map(|(feature, lacking)| BaselineError::Impossible { feature, lacking });
        errors.extend(impossible);
        if !errors.is_empty() {
            return Err(errors);
        }
        let name = self.name.clone().unwrap_or_else(|| format!("{} (custom)", base.name));
        Ok(Baseline { name, features, physical_address_bits: bits, ..base })
    }
}

impl FeatureSet {
    /// The features of those names.
    ///
    /// # Errors
    /// [`BaselineError::UnknownFeature`] for each name that is none.
    pub fn named(names: &[String]) -> Result<Self, Vec<BaselineError>> {
        let mut errors = Vec::new();
        let set = features(names, &mut errors);
        if errors.is_empty() { Ok(set) } else { Err(errors) }
    }
}

fn features(names: &[String], errors: &mut Vec<BaselineError>) -> FeatureSet {
    let mut set = FeatureSet::EMPTY;
    for name in names {
        match Feature::named(name) {
            Some(feature) => set.insert(feature),
            None => errors.push(BaselineError::UnknownFeature {
                name: name.clone(),
                suggestion: suggest(name, Feature::names()),
            }),
        }
    }
    set
}
