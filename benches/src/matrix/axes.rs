//! What can be varied, as it is written in a matrix and in the lines of a run.

use std::fmt;
use std::str::FromStr;

use migrated_api::{Mode, TransportKind};
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Bits of a page of 4 KiB.
const PAGE_BITS: f64 = 4096.0 * 8.0;

/// The link between the hosts: its rate in bits a second in each direction, or as fast as it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Link(pub Option<u64>);

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unshaped" {
            return Ok(Self(None));
        }
        let of = |unit: &str, bits: u64| text.strip_suffix(unit)?.parse::<u64>().ok()?.checked_mul(bits);
        let rate = of("gbit", 1_000_000_000).or_else(|| of("mbit", 1_000_000)).filter(|rate| *rate > 0);
        rate.map(|rate| Self(Some(rate)))
            .ok_or_else(|| format!("{text:?} is no link; write its rate as 100mbit or 1gbit, or `unshaped`"))
    }
}

impl TryFrom<String> for Link {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Link> for String {
    fn from(link: Link) -> Self {
        link.to_string()
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("unshaped"),
            Some(rate) if rate % 1_000_000_000 == 0 => write!(f, "{}gbit", rate / 1_000_000_000),
            Some(rate) => write!(f, "{}mbit", rate / 1_000_000),
        }
    }
}

/// How often the guest accesses its working set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Not at all: it only watches its clock.
    Idle,
    /// So many bytes of whole pages a second as are this share of the link's TCP payload rate.
    OfLink(f64),
    /// As often as it can.
    Max,
}

impl Rate {
    /// As the workload guest's parameter `rate`, in pages a second, on a link of this payload rate.
    #[must_use]
    pub fn parameter(self, payload_bps: f64) -> String {
        match self {
            Self::Idle => "0".into(),
            Self::OfLink(share) => format!("{:.0}", share * payload_bps / PAGE_BITS),
            Self::Max => "max".into(),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => f.write_str("idle"),
            Self::OfLink(share) => write!(f, "{share} × link"),
            Self::Max => f.write_str("flat out"),
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Idle => to.serialize_str("idle"),
            Self::OfLink(share) => to.serialize_f64(*share),
            Self::Max => to.serialize_str("max"),
        }
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share of the link's rate above 0, \"idle\" or \"max\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                match text {
                    "idle" => Ok(Rate::Idle),
                    "max" => Ok(Rate::Max),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_f64<E: de::Error>(self, share: f64) -> Result<Rate, E> {
                match share > 0.0 && share.is_finite() {
                    true => Ok(Rate::OfLink(share)),
                    false => Err(E::invalid_value(de::Unexpected::Float(share), &self)),
                }
            }

            fn visit_i64<E: de::Error>(self, share: i64) -> Result<Rate, E> {
                self.visit_f64(share as f64)
            }

            fn visit_u64<E: de::Error>(self, share: u64) -> Result<Rate, E> {
                self.visit_f64(share as f64)
            }
        }
        from.deserialize_any(Read)
    }
}

/// How `migrated` moves a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// Pre-copy; the guest is not slowed.
    #[serde(rename = "precopy")]
    Precopy,
    /// Pre-copy that may slow the guest, as far as the scenario's `max_slowdown_percent` says.
    #[serde(rename = "precopy+throttle")]
    PrecopyThrottle,
    /// Post-copy from the beginning.
    #[serde(rename = "postcopy")]
    Postcopy,
    /// Pre-copy, then post-copy.
    #[serde(rename = "hybrid")]
    Hybrid,
    /// What it chooses by itself.
    #[serde(rename = "auto")]
    Auto,
}

impl Way {
    /// The API's mode.
    #[must_use]
    pub const fn mode(self) -> Mode {
        match self {
            Self::Precopy | Self::PrecopyThrottle => Mode::Precopy,
            Self::Postcopy => Mode::Postcopy,
            Self::Hybrid => Mode::Hybrid,
            Self::Auto => Mode::Auto,
        }
    }

    /// The name in tables and plots.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Precopy => "pre-copy",
            Self::PrecopyThrottle => "pre-copy, throttled",
            Self::Postcopy => "post-copy",
            Self::Hybrid => "hybrid",
            Self::Auto => "auto",
        }
    }
}

/// Order of the guest's accesses, by the name that the workload guest has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// One page after the other.
    Seq,
    /// Every page with equal probability.
    Random,
    /// The n-th most popular page with a probability of about 1/n.
    Zipf,
}

impl Pattern {
    /// The name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seq => "seq",
            Self::Random => "random",
            Self::Zipf => "zipf",
        }
    }
}

/// What pages hold, by the name that the workload guest has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Zeros only.
    Zero,
    /// The same in all pages, but for a stamp.
    Constant,
    /// 8 random bytes in each 64.
    Compressible,
    /// Random bytes.
    Random,
}

impl Content {
    /// The name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Constant => "constant",
            Self::Compressible => "compressible",
            Self::Random => "random",
        }
    }
}

/// What is compared within a setting: who moves the guest, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "system", rename_all = "snake_case")]
pub enum Variant {
    /// `migrated`.
    Migrated {
        /// How.
        mode: Way,
        /// How bytes travel.
        transport: TransportKind,
        /// Page channels; what it chooses by itself without.
        channels: Option<u16>,
    },
    /// QEMU, over TCP in the clear.
    Qemu {
        /// How.
        method: crate::qemu::Method,
        /// Channels of multifd; QEMU's own number without.
        channels: Option<u16>,
    },
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels = match self {
            Self::Migrated { mode, transport, channels } => {
                f.write_str(mode.name())?;
                if *transport != TransportKind::Tcp {
                    write!(f, ", {transport}")?;
                }
                channels
            }
            Self::Qemu { method, channels } => {
                f.write_str(method.name())?;
                channels
            }
        };
        channels.map_or(Ok(()), |channels| write!(f, ", {channels} ch"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_written_as_they_are_read() {
        for (text, rate) in
            [("100mbit", Some(100_000_000)), ("10gbit", Some(10_000_000_000)), ("unshaped", None)]
        {
            assert_eq!((text.parse(), Link(rate).to_string().as_str()), (Ok(Link(rate)), text));
        }
        for text in ["1gibt", "0mbit", "gbit", "99999999999999gbit", "-1mbit"] {
            assert!(text.parse::<Link>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_share_of_the_link_is_pages_a_second() {
        assert_eq!(Rate::OfLink(0.5).parameter(1e9), "15259");
        assert_eq!([Rate::Idle.parameter(1e9), Rate::Max.parameter(1e9)], ["0", "max"]);
    }
}
