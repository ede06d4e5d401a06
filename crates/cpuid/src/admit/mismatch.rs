use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Feature, Kind, Place};

/// Why a host can't give a guest what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Cause {
    /// The host's CPU does not have it.
    HostLacks,
    /// The host's CPU had it until its microcode was updated.
    RemovedByMicrocode,
    /// The host's CPU is of a generation that has it, and does not show it: switched off in the firmware.
    DisabledInFirmware,
    /// The host's CPU has it, its KVM does not give it to guests.
    MaskedByKvm,
    /// The host's owner, or this software, keeps it from guests.
    MaskedByPolicy,
    /// Both have it, laid out differently in memory.
    LayoutDiffers,
    /// The host has a hazard that the guest was not told of.
    HazardOnDestination,
    /// The CPUs are of different vendors.
    VendorDiffers,
    /// Both have it, with another value.
    ValueDiffers,
}

impl Cause {
    /// In words, for people.
    #[must_use]
    pub const fn in_words(self) -> &'static str {
        match self {
            Self::HostLacks => "the host's CPU does not have it",
            Self::RemovedByMicrocode => "a microcode update took it from the host's CPU",
            Self::DisabledInFirmware => "the host's firmware has it switched off",
            Self::MaskedByKvm => "the host's CPU has it, its KVM does not give it to guests",
            Self::MaskedByPolicy => "the host keeps it from guests",
            Self::LayoutDiffers => "it is laid out differently in memory",
            Self::HazardOnDestination => "the host has this hazard and the guest was not told of it",
            Self::VendorDiffers => "the vendors differ",
            Self::ValueDiffers => "the values differ",
        }
    }
}

/// A value of one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// A bit (0 or 1), or a number in the field's unit.
    Number(u64),
    /// Anything else.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Value {
    fn from(bit: bool) -> Self {
        Self::Number(bit.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

/// One reason why a guest can't run on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// The feature's name, or the field's: `vendor`, `tsc_khz`, `xsave_area[5]`, ….
    pub field: String,
    /// Where its bit is, for a feature.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// What the guest has: 1 or 0 for a feature.
    pub guest: Value,
    /// What the host can give.
    pub host: Value,
    /// The rule that it breaks.
    pub kind: Kind,
    /// Why the host can't.
    pub cause: Cause,
    /// For a feature: whether hiding it from a guest also stops the guest from using it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled_by_masking: Option<bool>,
}

impl Mismatch {
    /// A field that is no feature.
    pub(crate) fn field(
        field: impl Into<String>,
        guest: impl Into<Value>,
        host: impl Into<Value>,
        kind: Kind,
        cause: Cause,
    ) -> Self {
        Self {
            field: field.into(),
            place: None,
            guest: guest.into(),
            host: host.into(),
            kind,
            cause,
            disabled_by_masking: None,
        }
    }

    /// A feature that only one side has.
    pub(crate) fn feature(feature: Feature, guest: bool, cause: Cause, vendor: &str) -> Self {
        Self {
            place: Some(feature.place()),
            disabled_by_masking: Some(feature.masking().disables(vendor)),
            ..Self::field(feature.name(), guest, !guest, feature.kind(), cause)
        }
    }

    /// What a person would do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match (self.cause, self.field.as_str()) {
            (Cause::VendorDiffers, _) => "pick a host of the guest's vendor",
            (Cause::RemovedByMicrocode, _) => "use a baseline that lacks it",
            (Cause::DisabledInFirmware, _) => "switch it on in the host's firmware setup",
            (Cause::MaskedByKvm, _) => "compare kernel and kvm module options of both hosts",
            (Cause::MaskedByPolicy, _) => {
                "change the host's `hide_cpu_features`, or pick a baseline without it"
            }
            (Cause::LayoutDiffers, _) => "use a baseline that lacks it",
            (Cause::HazardOnDestination, _) => "use a named baseline: those tell of every hazard",
            (_, "tsc_khz") => "pick a host of that TSC frequency, or one with TSC scaling",
            (Cause::HostLacks | Cause::ValueDiffers, _) => "pick another host, or use a lower baseline",
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, guest, host, cause, .. } = self;
        write!(f, "{field}")?;
        if let Some(place) = self.place {
            write!(f, " ({place})")?;
        }
        write!(f, ": guest {guest}, host {host}: {}", cause.in_words())
    }
}

/// Something that does not keep a guest from running on a host, and that its owner may want to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Warning {
    /// The feature's name, or the field's.
    pub field: String,
    /// What it is about.
    pub detail: String,
}
