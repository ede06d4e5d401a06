use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// More than any link here carries, in bytes a second: QEMU's own default would be a limit.
const UNLIMITED: u64 = 100_000_000_000;

/// How QEMU moves a guest: each is a set of capabilities of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Pre-copy over one channel.
    Precopy,
    /// Pre-copy over several channels.
    Multifd,
    /// Pre-copy that slows all vCPUs until it keeps up.
    AutoConverge,
    /// Pre-copy that sends what has changed of a page.
    Xbzrle,
    /// Post-copy, switched to as soon as the migration is under way.
    Postcopy,
    /// The same with a channel of its own for pages that are waited for.
    PostcopyPreempt,
}

impl Method {
    /// Those that switch first and bring the pages then.
    pub const POSTCOPY: [Self; 2] = [Self::Postcopy, Self::PostcopyPreempt];
    /// All that `migrate-set-capabilities` is told of: what a method does not name is switched off.
    const CAPABILITIES: [&'static str; 5] =
        ["postcopy-ram", "postcopy-preempt", "multifd", "auto-converge", "xbzrle"];

    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Precopy => "QEMU pre-copy",
            Self::Multifd => "QEMU multifd",
            Self::AutoConverge => "QEMU auto-converge",
            Self::Xbzrle => "QEMU xbzrle",
            Self::Postcopy => "QEMU post-copy",
            Self::PostcopyPreempt => "QEMU preempt",
        }
    }

    /// Whether the guest is switched before its pages have come.
    #[must_use]
    pub const fn switches_first(self) -> bool {
        matches!(self, Self::Postcopy | Self::PostcopyPreempt)
    }

    const fn uses(self) -> &'static [&'static str] {
        match self {
            Self::Precopy => &[],
            Self::Multifd => &["multifd"],
            Self::AutoConverge => &["auto-converge"],
            Self::Xbzrle => &["xbzrle"],
            Self::Postcopy => &["postcopy-ram"],
            Self::PostcopyPreempt => &["postcopy-ram", "postcopy-preempt"],
        }
    }

    /// Arguments of `migrate-set-capabilities`.
    pub(super) fn capabilities(self) -> Value {
        let one = |name: &&str| json!({ "capability": name, "state": self.uses().contains(name) });
        json!({ "capabilities": Self::CAPABILITIES.iter().map(one).collect::<Vec<_>>() })
    }
}

/// One move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// How.
    pub method: Method,
    /// Channels of multifd; QEMU's own number without.
    pub channels: Option<u16>,
    /// Longest downtime that pre-copy may end with, in ms; QEMU's own without.
    pub max_downtime_ms: Option<f64>,
    /// How long pre-copy may take before it is cancelled.
    pub timeout: Option<Duration>,
}

impl Request {
    /// Moves by a method, with QEMU's own limits.
    #[must_use]
    pub const fn by(method: Method) -> Self {
        Self { method, channels: None, max_downtime_ms: None, timeout: None }
    }

    /// Arguments of `migrate-set-parameters`, for a guest of so much RAM.
    pub(super) fn parameters(&self, memory_mib: u64) -> Value {
        let mut parameters = json!({ "max-bandwidth": UNLIMITED });
        if let Some(ms) = self.max_downtime_ms {
            parameters["downtime-limit"] = (ms.ceil() as u64).into();
        }
        match self.method {
            Method::Multifd => {
                if let Some(channels) = self.channels {
                    parameters["multifd-channels"] = channels.into();
                }
            }
            // A cache that holds all that can change; it has to be a power of two.
            Method::Xbzrle => {
                parameters["xbzrle-cache-size"] = (memory_mib << 20).next_power_of_two().into();
            }
            Method::Precopy | Method::AutoConverge | Method::Postcopy | Method::PostcopyPreempt => {}
        }
        parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_method_switches_the_others_off() {
        for method in [Method::Precopy, Method::Multifd, Method::PostcopyPreempt] {
            let set = method.capabilities();
            let set = set["capabilities"].as_array().unwrap();
            let on = set.iter().filter(|one| one["state"] == true).map(|one| one["capability"].as_str());
            let on: Vec<_> = on.flatten().collect();
            assert_eq!((set.len(), on.len()), (5, method.uses().len()), "{method:?}");
            assert!(on.iter().all(|name| method.uses().contains(name)), "{on:?}");
        }
    }

    #[test]
    fn limits_become_parameters() {
        let request =
            Request { channels: Some(4), max_downtime_ms: Some(19.5), ..Request::by(Method::Multifd) };
        let parameters = request.parameters(300);
        assert_eq!((&parameters["downtime-limit"], &parameters["multifd-channels"]), (&json!(20), &json!(4)));
        let delta = Request::by(Method::Xbzrle).parameters(300);
        assert_eq!((&delta["xbzrle-cache-size"], delta.get("downtime-limit")), (&json!(512 << 20), None));
    }
}
