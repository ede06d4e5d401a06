//! A matrix multiplied out.

use std::fmt;
use std::time::Duration;

use migrated_api::{OnTimeout, TransportKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::axes::{Content, Link, Pattern, Rate, Variant, Way};
use super::error::MatrixError;
use super::file::{Matrix, Scenario};
use super::list::List;
use crate::guest::Guest;
use crate::qemu::{self, Method};

/// How far `precopy+throttle` goes when a scenario does not say, in percent: QEMU's `max-cpu-throttle`.
const SLOWDOWN_PERCENT: u8 = 99;
/// How long pre-copy may take when a scenario does not say.
const TIMEOUT_S: f64 = 60.0;
/// Bytes of the guest's table that stand for each page of the working set, which is as much RAM more that is not zero.
const GENERATION: u64 = 8;
/// Bytes of a page.
const PAGE: u64 = 4096;

/// What a guest is and does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// RAM in MiB.
    pub memory_mib: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// Working set in MiB.
    pub hot_mib: u64,
    /// Filled RAM beside it in MiB.
    pub fill_mib: u64,
    /// How often the working set is accessed.
    pub rate: Rate,
    /// In which order.
    pub pattern: Pattern,
    /// What pages hold.
    pub content: Content,
    /// Further parameters of the workload guest.
    pub parameters: String,
}

impl Workload {
    /// The guest, on a link of this TCP payload rate in bits a second.
    #[must_use]
    pub fn guest(&self, payload_bps: f64) -> Guest {
        let Self { memory_mib, vcpus, hot_mib, fill_mib, rate, pattern, content, parameters } = self;
        let (rate, pattern, content) = (rate.parameter(payload_bps), pattern.name(), content.name());
        let workload = format!(
            "hot={hot_mib}M fill={fill_mib}M rate={rate} pattern={pattern} content={content} {parameters}"
        );
        let workload = workload.trim_end().to_owned();
        Guest { memory_mib: *memory_mib, vcpus: *vcpus, workload, prefault: true }
    }

    /// Bytes of its RAM that hold something. Its own image and counters, less than 1 MiB, are not counted.
    #[must_use]
    pub fn nonzero_bytes(&self) -> u64 {
        let table = (self.hot_mib << 20) / PAGE * GENERATION;
        let filled = match self.content {
            Content::Zero => 0,
            Content::Constant | Content::Compressible | Content::Random => {
                (self.hot_mib + self.fill_mib) << 20
            }
        };
        table + filled
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory_mib, vcpus, hot_mib, fill_mib, rate, pattern, content, parameters } = self;
        write!(f, "{memory_mib} MiB, {vcpus} vCPU")?;
        match rate {
            Rate::Idle => write!(f, ", idle, {} MiB {}", hot_mib + fill_mib, content.name())?,
            _ => write!(f, ", {hot_mib} MiB {} at {rate}, {}", content.name(), pattern.name())?,
        }
        if *fill_mib > 0 && *rate != Rate::Idle {
            write!(f, ", {fill_mib} MiB filled")?;
        }
        if parameters.is_empty() { Ok(()) } else { write!(f, ", {parameters}") }
    }
}

/// What both systems keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Longest downtime in ms; each system's own without.
    pub max_downtime_ms: Option<f64>,
    /// How far `precopy+throttle` may slow a vCPU, in percent.
    pub max_slowdown_percent: u8,
    /// How long pre-copy may take until it has not converged.
    pub timeout: Duration,
}

impl Limits {
    /// A request to `migrated`, as of `StartMigration` without `to`.
    #[must_use]
    pub fn request(&self, mode: Way, transport: TransportKind, channels: Option<u16>) -> Value {
        let slowdown = if mode == Way::PrecopyThrottle { self.max_slowdown_percent } else { 0 };
        json!({
            "mode": mode.mode(),
            "transport": transport,
            "channels": channels,
            "max_downtime_ms": self.max_downtime_ms,
            "max_slowdown_percent": slowdown,
            "timeout_s": self.timeout.as_secs_f64(),
            "on_timeout": OnTimeout::Cancel,
        })
    }

    /// The same for QEMU.
    #[must_use]
    pub fn qemu(&self, method: Method, channels: Option<u16>) -> qemu::Request {
        qemu::Request { method, channels, max_downtime_ms: self.max_downtime_ms, timeout: Some(self.timeout) }
    }
}

/// A link and a guest on it, and what moves the guest in turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The scenario's name.
    pub scenario: String,
    /// What is asked of the figures.
    pub aim: String,
    /// The link.
    pub link: Link,
    /// The guest.
    pub guest: Workload,
    /// What all keep to.
    pub limits: Limits,
    /// In the order of their first round.
    pub variants: Vec<Variant>,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}, {}", self.scenario, self.link, self.guest)
    }
}

impl Matrix {
    /// All settings that have something to move their guest, in the file's order.
    ///
    /// # Errors
    /// A scenario moves nothing, or has a rule that is no use.
    pub fn settings(&self) -> Result<Vec<Setting>, MatrixError> {
        let all = self.scenario.iter().map(Scenario::settings).collect::<Result<Vec<_>, _>>()?;
        Ok(all.into_iter().flatten().collect())
    }
}

impl Scenario {
    fn settings(&self) -> Result<Vec<Setting>, MatrixError> {
        let scenario = || self.name.clone();
        let variants = self.variants();
        if variants.is_empty() {
            return Err(MatrixError::Nobody { scenario: scenario() });
        }
        let settings = product(vec![()], &self.link.0, |(), link| link);
        let settings = product(settings, &self.guests(), |link, guest| Setting {
            scenario: scenario(),
            aim: self.aim.clone(),
            link,
            guest,
            limits: self.limits(),
            variants: variants.clone(),
        });
        for (n, rule) in self.exclude.iter().enumerate() {
            let hits = |setting: &Setting| setting.variants.iter().any(|v| rule.matches(setting, v));
            if !settings.iter().any(hits) {
                return Err(MatrixError::IdleRule { scenario: scenario(), rule: n + 1 });
            }
        }
        let left = settings.into_iter().map(|setting| {
            let stays = |v: &&Variant| !self.exclude.iter().any(|rule| rule.matches(&setting, v));
            let variants = setting.variants.iter().filter(stays).copied().collect();
            Setting { variants, ..setting }
        });
        let left: Vec<_> = left.filter(|setting| !setting.variants.is_empty()).collect();
        if left.is_empty() { Err(MatrixError::Nothing { scenario: scenario() }) } else { Ok(left) }
    }

    fn limits(&self) -> Limits {
        Limits {
            max_downtime_ms: self.max_downtime_ms,
            max_slowdown_percent: self.max_slowdown_percent.unwrap_or(SLOWDOWN_PERCENT),
            timeout: Duration::from_secs_f64(self.timeout_s.unwrap_or(TIMEOUT_S)),
        }
    }

    fn guests(&self) -> Vec<Workload> {
        let plain = Workload {
            memory_mib: 0,
            vcpus: 1,
            hot_mib: 8,
            fill_mib: 0,
            rate: Rate::Idle,
            pattern: Pattern::Random,
            content: Content::Random,
            parameters: self.parameters.clone(),
        };
        let all = product(vec![plain], &self.memory_mib.0, |all, memory_mib| Workload { memory_mib, ..all });
        let all = vary(all, &self.vcpus, |all, vcpus| Workload { vcpus, ..all });
        let all = vary(all, &self.hot_mib, |all, hot_mib| Workload { hot_mib, ..all });
        let all = vary(all, &self.fill_mib, |all, fill_mib| Workload { fill_mib, ..all });
        let all = vary(all, &self.rate, |all, rate| Workload { rate, ..all });
        let all = vary(all, &self.pattern, |all, pattern| Workload { pattern, ..all });
        vary(all, &self.content, |all, content| Workload { content, ..all })
    }

    fn variants(&self) -> Vec<Variant> {
        let channels: Vec<_> = match &self.channels {
            Some(List(channels)) => channels.iter().copied().map(Some).collect(),
            None => vec![None],
        };
        let transports = self.transport.as_ref().map_or(&[TransportKind::Tcp][..], |list| &list.0);
        let modes = self.mode.as_ref().map_or(&[][..], |list| &list.0);
        let ours = product(vec![()], modes, |(), mode| mode);
        let ours = product(ours, transports, |mode, transport| (mode, transport));
        let ours = product(ours, &channels, |(mode, transport), channels| Variant::Migrated {
            mode,
            transport,
            channels,
        });
        let methods = self.qemu.as_ref().map_or(&[][..], |list| &list.0);
        let theirs = methods.iter().flat_map(|&method| {
            // The others have the one channel that they need.
            let channels = if method == Method::Multifd { &channels[..] } else { &[None] };
            channels.iter().map(move |&channels| Variant::Qemu { method, channels })
        });
        ours.into_iter().chain(theirs).collect()
    }
}

/// Each of `all` with each value of an axis.
fn product<A: Clone, T: Clone, B>(all: Vec<A>, axis: &[T], with: impl Fn(A, T) -> B) -> Vec<B> {
    let pairs = all.iter().flat_map(|one| axis.iter().map(move |value| (one.clone(), value.clone())));
    pairs.map(|(one, value)| with(one, value)).collect()
}

/// The same with an axis that may be left out.
fn vary<A: Clone, T: Clone>(all: Vec<A>, axis: &Option<List<T>>, with: impl Fn(A, T) -> A) -> Vec<A> {
    match axis {
        Some(List(values)) => product(all, values, with),
        None => all,
    }
}
