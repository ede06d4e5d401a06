//! The parameters of the workload guest, as words `key=value` of its command line.
//!
//! Shared source: the host parses them to refuse bad ones before anything boots, the guest to run.

/// Bytes of a page, the unit in which the guest writes and checks.
pub const PAGE_SIZE: u64 = 4096;

/// Every key with its values and its meaning: what `--help` and the errors print.
pub const KEYS: [(&str, &str, &str); 12] = [
    ("hot", "BYTES", "working set that is written over and over, shared out among the vCPUs [8M]"),
    (
        "rate",
        "PAGES/S|max|0",
        "page accesses per second of all vCPUs together; 0 only watches the TSC [10000]",
    ),
    ("pattern", "seq|random|zipf", "order of the accesses [seq]"),
    ("content", "zero|constant|compressible|random", "what pages are filled and written with [random]"),
    ("readonly", "0-100", "percentage of accesses that only read and check [0]"),
    ("readers", "0-64", "vCPUs, counted from the last, of which all accesses only read and check [0]"),
    ("fill", "BYTES", "RAM outside the working set filled at start and checked ever after [0]"),
    ("check", "PAGES/S|max|0", "how fast each vCPU's checker walks its working set and fill [16384]"),
    ("seed", "NUMBER", "seed of all content and random order [1]"),
    ("vcpus", "1-64", "vCPUs that take part; set by the VMM [1]"),
    (
        "cpuid",
        "LEAF:SUBLEAF,…",
        "CPUID leaves, in hexadecimal, that are printed at start as code at CPL 0 sees them; at most 16 [none]",
    ),
    ("tsc_khz", "NUMBER", "frequency of the TSC in kHz; set by the VMM [asked from CPUID]"),
];

/// Order of the accesses to the working set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One page after the other.
    Sequential,
    /// Every page with equal probability.
    Random,
    /// The n-th most popular page with a probability of about 1/n.
    Zipf,
}

/// What pages hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros only, so that zero-page detection has work; such pages carry no stamp.
    Zero,
    /// The same bytes in all pages, except for the stamps in the first and the last line.
    Constant,
    /// 8 random bytes in each 64.
    Compressible,
    /// Random bytes.
    Random,
}

/// How often something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// So many pages per second; 0 is never.
    PerSecond(u64),
    /// As often as the vCPU can.
    Max,
}

/// All parameters, see [`KEYS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Working set in bytes.
    pub hot: u64,
    /// Page accesses of all vCPUs together.
    pub rate: Rate,
    /// Order of the accesses.
    pub pattern: Pattern,
    /// What pages hold.
    pub content: Content,
    /// Share of accesses that only read, in percent.
    pub readonly: u64,
    /// vCPUs, counted from the last, that only read.
    pub readers: u64,
    /// Filled RAM outside the working set, in bytes.
    pub fill: u64,
    /// Pages that each vCPU's checker reads.
    pub check: Rate,
    /// Seed of content and order.
    pub seed: u64,
    /// vCPUs that take part.
    pub vcpus: u64,
    /// CPUID leaves to print.
    pub cpuid: Leaves,
    /// Frequency of the TSC in kHz; 0 when the command line does not say.
    pub tsc_khz: u64,
}

/// Some CPUID leaves, each with a subleaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaves {
    all: [(u32, u32); 16],
    count: usize,
}

impl Leaves {
    /// As `7:0,80000001:0`.
    fn parse(value: &str) -> Option<Self> {
        let mut leaves = Self::default();
        for word in value.split(',') {
            let (leaf, subleaf) = word.split_once(':')?;
            *leaves.all.get_mut(leaves.count)? = (hexadecimal(leaf)?, hexadecimal(subleaf)?);
            leaves.count += 1;
        }
        Some(leaves)
    }

    /// All as (leaf, subleaf).
    pub fn as_slice(&self) -> &[(u32, u32)] {
        &self.all[..self.count]
    }
}

impl Default for Params {
    fn default() -> Self {
        Self {
            hot: 8 << 20,
            rate: Rate::PerSecond(10_000),
            pattern: Pattern::Sequential,
            content: Content::Random,
            readonly: 0,
            readers: 0,
            fill: 0,
            check: Rate::PerSecond(16_384),
            seed: 1,
            vcpus: 1,
            cpuid: Leaves::default(),
            tsc_khz: 0,
        }
    }
}

/// What is wrong with a word of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Not of the form `key=value`.
    NotKeyValue,
    /// No such key.
    UnknownKey,
    /// The key was given before.
    Repeated,
    /// Not one of the key's values.
    BadValue,
}

/// A word of the command line that can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadWord<'a> {
    /// The word.
    pub word: &'a str,
    /// What is wrong with it.
    pub problem: Problem,
}

impl Params {
    /// Parses a command line. Keys that it lacks keep their defaults.
    ///
    /// # Errors
    /// The first word that can't be used.
    pub fn parse(cmdline: &str) -> Result<Self, BadWord<'_>> {
        let mut params = Self::default();
        let mut seen = [false; KEYS.len()];
        for word in cmdline.split_ascii_whitespace() {
            let bad = |problem| BadWord { word, problem };
            let (key, value) = word.split_once('=').ok_or(bad(Problem::NotKeyValue))?;
            let index = KEYS.iter().position(|(k, _, _)| *k == key).ok_or(bad(Problem::UnknownKey))?;
            if core::mem::replace(&mut seen[index], true) {
                return Err(bad(Problem::Repeated));
            }
            params.set(key, value).ok_or(bad(Problem::BadValue))?;
        }
        Ok(params)
    }

    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "hot" => self.hot = bytes(value)?,
            "rate" => self.rate = rate(value)?,
            "pattern" => {
                self.pattern = match value {
                    "seq" => Pattern::Sequential,
                    "random" => Pattern::Random,
                    "zipf" => Pattern::Zipf,
                    _ => return None,
                }
            }
            "content" => {
                self.content = match value {
                    "zero" => Content::Zero,
                    "constant" => Content::Constant,
                    "compressible" => Content::Compressible,
                    "random" => Content::Random,
                    _ => return None,
                }
            }
            "readonly" => self.readonly = number(value).filter(|percent| *percent <= 100)?,
            "readers" => self.readers = number(value).filter(|n| *n <= super::layout::MAX_VCPUS)?,
            "fill" => self.fill = bytes(value)?,
            "check" => self.check = rate(value)?,
            "seed" => self.seed = number(value)?,
            "vcpus" => self.vcpus = number(value).filter(|n| (1..=super::layout::MAX_VCPUS).contains(n))?,
            "cpuid" => self.cpuid = Leaves::parse(value)?,
            // Up to 100 GHz, so that a product of ticks and seconds can't overflow.
            "tsc_khz" => self.tsc_khz = number(value).filter(|khz| (1..=100_000_000).contains(khz))?,
            _ => return None,
        }
        Some(())
    }
}

fn number(value: &str) -> Option<u64> {
    value.parse().ok()
}

fn hexadecimal(value: &str) -> Option<u32> {
    u32::from_str_radix(value, 16).ok()
}

/// Pages per second; at most one a nanosecond, which is as good as `max`.
fn rate(value: &str) -> Option<Rate> {
    match value {
        "max" => Some(Rate::Max),
        _ => number(value).filter(|n| *n <= 1_000_000_000).map(Rate::PerSecond),
    }
}

/// A whole number of pages, as bytes or with one of the suffixes K, M, G, T (powers of 1024).
fn bytes(value: &str) -> Option<u64> {
    let shift = match value.as_bytes().last()? {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        _ => 0,
    };
    let digits = if shift == 0 { value } else { &value[..value.len() - 1] };
    let bytes = number(digits)?.checked_mul(1 << shift)?;
    bytes.is_multiple_of(PAGE_SIZE).then_some(bytes)
}
