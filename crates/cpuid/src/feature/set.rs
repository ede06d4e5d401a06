use std::fmt;
use std::ops::{BitAnd, BitOr, Sub};

use serde::{Deserialize, Serialize};

use super::Feature;

/// Words of 64 features. The table's test holds it against the number of rows.
const WORDS: usize = 8;

/// A set of features.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<Feature>", into = "Vec<Feature>")]
pub struct FeatureSet([u64; WORDS]);

impl FeatureSet {
    /// How many features a set has room for.
    pub(crate) const CAPACITY: usize = WORDS * 64;

    /// No feature.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// Puts a feature in.
    pub fn insert(&mut self, feature: Feature) {
        self.0[feature.number() / 64] |= 1 << (feature.number() % 64);
    }

    /// Takes a feature out.
    pub fn remove(&mut self, feature: Feature) {
        self.0[feature.number() / 64] &= !(1 << (feature.number() % 64));
    }

    /// Whether the feature is in it.
    #[must_use]
    pub fn contains(&self, feature: Feature) -> bool {
        self.0[feature.number() / 64] & 1 << (feature.number() % 64) != 0
    }

    /// Whether all of it is in `other`.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a & !b == 0)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// How many are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Its features, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = Feature> + use<> {
        self.0.into_iter().enumerate().flat_map(|(n, mut word)| {
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros())?;
                word &= word - 1;
                Some(Feature::numbered(n * 64 + bit as usize))
            })
        })
    }

    /// Those of `names`; panics at a name that is not in the table, which a test of the tables finds.
    pub(crate) fn of(names: &[&str]) -> Self {
        names.iter().map(|name| super::named(name)).collect()
    }

    fn zip(self, other: Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self(std::array::from_fn(|n| of(self.0[n], other.0[n])))
    }
}

impl BitAnd for FeatureSet {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        self.zip(other, |a, b| a & b)
    }
}

impl BitOr for FeatureSet {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.zip(other, |a, b| a | b)
    }
}

impl Sub for FeatureSet {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a & !b)
    }
}

impl FromIterator<Feature> for FeatureSet {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        let mut set = Self::EMPTY;
        features.into_iter().for_each(|feature| set.insert(feature));
        set
    }
}

impl From<Vec<Feature>> for FeatureSet {
    fn from(features: Vec<Feature>) -> Self {
        features.into_iter().collect()
    }
}

impl From<FeatureSet> for Vec<Feature> {
    fn from(set: FeatureSet) -> Self {
        set.iter().collect()
    }
}

impl fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl fmt::Display for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Feature::name).collect();
        f.write_str(&names.join(" "))
    }
}
