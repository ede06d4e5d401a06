//! A matrix as it is written.

use std::path::Path;

use migrated_api::TransportKind;
use serde::Deserialize;

use super::axes::{Content, Link, Pattern, Rate, Variant, Way};
use super::error::MatrixError;
use super::list::List;
use super::setting::{Setting, Workload};
use super::summary::Narrowed;
use crate::qemu::Method;

/// A file of scenarios.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// How often each variant is tried.
    #[serde(default)]
    pub rounds: Rounds,
    /// What is tried.
    pub scenario: Vec<Scenario>,
}

/// When it is enough. In a round each variant moves its guest once.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rounds {
    /// Rounds that are not counted: page cache, allocator and link settle.
    pub warm_up: u32,
    /// Fewest rounds that are counted.
    pub least: u32,
    /// Most of them, however wide the intervals are.
    pub most: u32,
    /// It is enough when the 95 % interval of the median of every variant is at most so wide, as a share of the median.
    pub share: f64,
    /// Of which measures that is asked.
    pub narrow: Vec<Narrowed>,
}

impl Default for Rounds {
    fn default() -> Self {
        Self { warm_up: 1, least: 6, most: 30, share: 0.1, narrow: vec![Narrowed::Gap, Narrowed::Total] }
    }
}

/// One scenario. Its lists multiply out: each combination of link and guest is a setting, in which each combination of
/// the rest is a variant. What is left out has one value.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What is asked of the figures, for whoever reads them.
    #[serde(default)]
    pub aim: String,
    /// Links.
    pub link: List<Link>,
    /// Guest RAM in MiB.
    pub memory_mib: List<u64>,
    /// vCPUs; 1 when left out.
    pub vcpus: Option<List<u32>>,
    /// The working set in MiB, which is filled at start and accessed; 8 when left out.
    pub hot_mib: Option<List<u64>>,
    /// RAM in MiB that is filled at start and otherwise only read; 0 when left out.
    pub fill_mib: Option<List<u64>>,
    /// How often the working set is accessed; `idle` when left out.
    pub rate: Option<List<Rate>>,
    /// In which order; `random` when left out.
    pub pattern: Option<List<Pattern>>,
    /// What pages hold; `random` when left out.
    pub content: Option<List<Content>>,
    /// Further parameters of the workload guest, as it reads them.
    #[serde(default)]
    pub parameters: String,
    /// How `migrated` moves the guest; not at all when left out.
    pub mode: Option<List<Way>>,
    /// Over what; `tcp` when left out.
    pub transport: Option<List<TransportKind>>,
    /// Page channels, of QEMU those of multifd; each system's own number when left out.
    pub channels: Option<List<u16>>,
    /// How QEMU moves the guest; not at all when left out.
    pub qemu: Option<List<Method>>,
    /// Longest time that the guest may stand still, in ms, for both systems; each system's own limit when left out.
    pub max_downtime_ms: Option<f64>,
    /// How far `precopy+throttle` may slow a vCPU, in percent; 99 when left out, as QEMU's auto-converge goes.
    pub max_slowdown_percent: Option<u8>,
    /// How long pre-copy may take, in seconds, until it has not converged; 60 when left out.
    pub timeout_s: Option<f64>,
    /// What is left out of the product.
    #[serde(default)]
    pub exclude: Vec<Exclude>,
}

/// A rule: it leaves out what has one of the values of each of its keys.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exclude {
    link: Option<List<Link>>,
    memory_mib: Option<List<u64>>,
    vcpus: Option<List<u32>>,
    hot_mib: Option<List<u64>>,
    fill_mib: Option<List<u64>>,
    rate: Option<List<Rate>>,
    pattern: Option<List<Pattern>>,
    content: Option<List<Content>>,
    mode: Option<List<Way>>,
    transport: Option<List<TransportKind>>,
    channels: Option<List<u16>>,
    qemu: Option<List<Method>>,
}

impl Exclude {
    /// Whether the rule leaves out this variant in this setting.
    #[must_use]
    pub fn matches(&self, setting: &Setting, variant: &Variant) -> bool {
        let Workload { memory_mib, vcpus, hot_mib, fill_mib, rate, pattern, content, .. } = &setting.guest;
        let (mode, transport, method, channels) = match variant {
            Variant::Migrated { mode, transport, channels } => (Some(mode), Some(transport), None, channels),
            Variant::Qemu { method, channels } => (None, None, Some(method), channels),
        };
        allows(&self.link, Some(&setting.link))
            && allows(&self.memory_mib, Some(memory_mib))
            && allows(&self.vcpus, Some(vcpus))
            && allows(&self.hot_mib, Some(hot_mib))
            && allows(&self.fill_mib, Some(fill_mib))
            && allows(&self.rate, Some(rate))
            && allows(&self.pattern, Some(pattern))
            && allows(&self.content, Some(content))
            && allows(&self.mode, mode)
            && allows(&self.transport, transport)
            && allows(&self.channels, channels.as_ref())
            && allows(&self.qemu, method)
    }
}

/// Whether a key of a rule does not speak against this value; a key that is not there speaks against none.
fn allows<T: PartialEq>(key: &Option<List<T>>, value: Option<&T>) -> bool {
    let Some(List(values)) = key else { return true };
    value.is_some_and(|value| values.contains(value))
}

impl Matrix {
    /// Reads it from a file and checks it.
    ///
    /// # Errors
    /// See [`MatrixError`].
    pub fn read(path: &Path) -> Result<Self, MatrixError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| MatrixError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// The same, of a text that lies at `path`.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self, MatrixError> {
        let matrix: Self = toml::from_str(text)
            .map_err(|source| MatrixError::Wrong { path: path.to_owned(), source: Box::new(source) })?;
        matrix.check()?;
        Ok(matrix)
    }

    fn check(&self) -> Result<(), MatrixError> {
        let Rounds { least, most, share, .. } = self.rounds;
        within("rounds.least", least, least >= 1, "at least 1")?;
        within("rounds.most", most, most >= least, "at least rounds.least")?;
        within("rounds.share", share, share > 0.0, "above 0")?;
        for (n, scenario) in self.scenario.iter().enumerate() {
            if self.scenario[..n].iter().any(|before| before.name == scenario.name) {
                return Err(MatrixError::Twice { name: scenario.name.clone() });
            }
            let Scenario { max_downtime_ms, max_slowdown_percent, timeout_s, .. } = scenario;
            let above_0 = |number: &Option<f64>| number.is_none_or(|number| number > 0.0 && number < 1e6);
            let (downtime, timeout) = (max_downtime_ms.unwrap_or(1.0), timeout_s.unwrap_or(1.0));
            within("max_downtime_ms", downtime, above_0(max_downtime_ms), "above 0 and below 1000000")?;
            within("timeout_s", timeout, above_0(timeout_s), "above 0 and below 1000000")?;
            let slowdown = max_slowdown_percent.unwrap_or(99);
            within("max_slowdown_percent", slowdown, (1..=99).contains(&slowdown), "from 1 to 99")?;
        }
        Ok(())
    }

    /// The scenarios of these names, in the file's order; all of them when none is named.
    ///
    /// # Errors
    /// A name is none.
    pub fn only(mut self, names: &[String]) -> Result<Self, MatrixError> {
        let known: Vec<_> = self.scenario.iter().map(|scenario| scenario.name.clone()).collect();
        if let Some(name) = names.iter().find(|name| !known.contains(name)) {
            return Err(MatrixError::Unknown { name: name.clone(), known });
        }
        self.scenario.retain(|scenario| names.is_empty() || names.contains(&scenario.name));
        Ok(self)
    }
}

fn within(
    key: &'static str,
    value: impl ToString,
    within: bool,
    range: &'static str,
) -> Result<(), MatrixError> {
    if within { Ok(()) } else { Err(MatrixError::Range { key, value: value.to_string(), range }) }
}
