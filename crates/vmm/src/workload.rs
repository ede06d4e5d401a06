//! The built-in workload guest, seen from the host: its image, its parameters, its counters.
//!
//! The guest writes its memory over and over and notices, by itself, any page that is not what it wrote
//! last; how is told in its source, `workload/` beside `src/`. Three files of that source are used on both sides.

#[allow(dead_code, reason = "shared with the guest, which uses other parts of it")]
#[path = "../workload/counters.rs"]
mod counters;
#[allow(dead_code, reason = "shared with the guest, which uses other parts of it")]
#[path = "../workload/layout.rs"]
mod layout;
#[path = "../workload/params.rs"]
mod params;
mod read;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

pub(crate) use read::read_if;

pub use params::{Content, KEYS, Leaves, Params as WorkloadParams, Pattern, Rate};
pub use read::{
    ErrorCounts, FirstError, Gap, Totals, VcpuCounters, VcpuStatus, WorkloadCounters, counters_range, read,
    read_saved,
};

use layout::{ARENA_BASE, Arena, Plan};
use params::{BadWord, PAGE_SIZE, Problem};

/// The guest as a PVH ELF image, which QEMU boots as well (`-kernel FILE -append 'hot=64M rate=max'`).
#[must_use]
pub fn image() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/workload.elf"))
}

/// Why the workload guest can't do what its command line asks for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WorkloadError {
    /// A word is not of the form `key=value`.
    #[error("workload parameter {word:?} is not of the form key=value")]
    NotKeyValue {
        /// The word.
        word: String,
    },
    /// A key that is none.
    #[error("workload parameter {word:?} is unknown; there are {}", keys())]
    UnknownKey {
        /// The word.
        word: String,
    },
    /// A key was given before, or belongs to the VMM.
    #[error(
        "workload parameter {word:?} repeats a key that was given before or that the VMM sets; remove one"
    )]
    Repeated {
        /// The word.
        word: String,
    },
    /// A value that the key does not take.
    #[error("workload parameter {word:?} has a bad value; it takes {values}")]
    BadValue {
        /// The word.
        word: String,
        /// What the key takes.
        values: &'static str,
    },
    /// Working set and fill need more RAM than there is.
    #[error(
        "hot and fill need {needed} bytes of RAM with the guest's own, it has {ram}; ask for less or give it more"
    )]
    TooLarge {
        /// RAM that would do, in bytes, counted from address 0.
        needed: u64,
        /// RAM that the guest has, likewise.
        ram: u64,
    },
}

fn keys() -> String {
    KEYS.map(|(key, _, _)| key).join(", ")
}

impl From<BadWord<'_>> for WorkloadError {
    fn from(BadWord { word, problem }: BadWord<'_>) -> Self {
        let key = word.split('=').next().unwrap_or_default();
        let word = word.to_owned();
        match problem {
            Problem::NotKeyValue => Self::NotKeyValue { word },
            Problem::UnknownKey => Self::UnknownKey { word },
            Problem::Repeated => Self::Repeated { word },
            Problem::BadValue => {
                let values = KEYS.iter().find(|(k, _, _)| *k == key).map_or("", |(_, values, _)| values);
                Self::BadValue { word, values }
            }
        }
    }
}

impl FromStr for WorkloadParams {
    type Err = WorkloadError;

    fn from_str(cmdline: &str) -> Result<Self, WorkloadError> {
        Ok(Self::parse(cmdline)?)
    }
}

impl fmt::Display for WorkloadParams {
    /// As a command line that parses to the same parameters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pattern = match self.pattern {
            Pattern::Sequential => "seq",
            Pattern::Random => "random",
            Pattern::Zipf => "zipf",
        };
        let content = match self.content {
            Content::Zero => "zero",
            Content::Constant => "constant",
            Content::Compressible => "compressible",
            Content::Random => "random",
        };
        let Self { hot, rate, readonly, readers, fill, check, seed, vcpus, cpuid, tsc_khz, .. } = self;
        write!(f, "hot={hot} rate={rate} pattern={pattern} content={content} readonly={readonly} ")?;
        write!(f, "readers={readers} fill={fill} check={check} seed={seed} vcpus={vcpus}")?;
        for (n, (leaf, subleaf)) in cpuid.as_slice().iter().enumerate() {
            write!(f, "{}{leaf:x}:{subleaf:x}", if n == 0 { " cpuid=" } else { "," })?;
        }
        if *tsc_khz != 0 { write!(f, " tsc_khz={tsc_khz}") } else { Ok(()) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(n) => n.fmt(f),
            Self::Max => f.write_str("max"),
        }
    }
}

/// Checks that what `params` ask for fits into RAM of these ranges (first byte, end).
pub(crate) fn check_fit(
    params: &WorkloadParams,
    ram: impl Iterator<Item = (u64, u64)>,
) -> Result<(), WorkloadError> {
    let arena = Arena::new(ram);
    let bytes = |pages: u64| ARENA_BASE.saturating_add(pages.saturating_mul(PAGE_SIZE));
    match Plan::new(&arena, params) {
        Ok(_) => Ok(()),
        Err(pages) => Err(WorkloadError::TooLarge {
            needed: bytes(pages),
            ram: bytes(arena.low_pages + arena.high_pages),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(cmdline: &str) -> Result<WorkloadParams, WorkloadError> {
        cmdline.parse()
    }

    #[test]
    fn parameters_survive_being_printed() {
        let cmdline = "hot=128M rate=max pattern=zipf content=compressible readonly=25 readers=1 fill=1G check=0 seed=7 vcpus=2 \
             cpuid=7:0,80000021:0";
        let params = parse(cmdline).unwrap();
        assert_eq!((params.hot, params.fill, params.rate), (128 << 20, 1 << 30, Rate::Max));
        assert_eq!(parse(&params.to_string()), Ok(params));
        assert_eq!(parse(&WorkloadParams::default().to_string()), Ok(WorkloadParams::default()));
        assert_eq!(parse("  "), Ok(WorkloadParams::default()));
    }

    #[test]
    fn bad_words_are_named() {
        let error = |cmdline: &str| parse(cmdline).unwrap_err();
        assert_eq!(error("seed=1 hot"), WorkloadError::NotKeyValue { word: "hot".into() });
        assert_eq!(error("seed=1 cold=1M"), WorkloadError::UnknownKey { word: "cold=1M".into() });
        assert_eq!(error("seed=1 seed=1"), WorkloadError::Repeated { word: "seed=1".into() });
        assert!(error("cold=1M").to_string().contains("hot, rate, pattern"));
        for word in [
            "hot=1000",
            "hot=-4096",
            "hot=M",
            "hot=18446744073709551615T",
            "hot=4096k",
            "rate=fast",
            "rate=-1",
            "rate=1000000001",
            "pattern=zip",
            "content=",
            "readonly=101",
            "readers=65",
            "cpuid=7",
            "cpuid=",
            "cpuid=7:0,",
            "cpuid=100000000:0",
            "cpuid=0:0,1:0,2:0,3:0,4:0,5:0,6:0,7:0,8:0,9:0,a:0,b:0,c:0,d:0,e:0,f:0,10:0",
            "vcpus=0",
            "vcpus=65",
            "tsc_khz=0",
            "seed=x",
        ] {
            assert!(matches!(error(word), WorkloadError::BadValue { .. }), "{word}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let ram = |bytes: u64| [(0, 0x9_fc00), (1 << 20, bytes)].into_iter();
        let params = parse("hot=8M fill=16M").unwrap();
        let Err(WorkloadError::TooLarge { needed, .. }) = check_fit(&params, ram(24 << 20)) else {
            panic!("24 MiB can't hold 24 MiB and the guest");
        };
        assert_eq!(check_fit(&params, ram(needed)), Ok(()));
        assert!(check_fit(&params, ram(needed - 4096)).is_err());
        let huge = parse("hot=16777215T fill=16777215T").unwrap();
        assert!(check_fit(&huge, ram(1 << 30)).is_err());
        assert!(check_fit(&params, [].into_iter()).is_err());
    }

    #[test]
    fn ram_above_the_hole_is_used() {
        let params = parse("hot=3G fill=1G").unwrap();
        let low = [(1 << 20, 3 << 30)];
        assert!(check_fit(&params, low.into_iter()).is_err());
        assert_eq!(check_fit(&params, low.into_iter().chain([(4 << 30, 6 << 30)])), Ok(()));
    }

    #[test]
    fn a_working_set_that_fits_above_the_hole_lies_there() {
        let arena = Arena::new([(1 << 20, 3 << 30), (4 << 30, 5 << 30)].into_iter());
        let first = |parameters| {
            let plan = Plan::new(&arena, &parse(parameters).unwrap()).unwrap();
            assert!(plan.fill >= plan.hot + plan.hot_pages || plan.fill + plan.fill_pages <= plan.hot);
            arena.address(plan.hot)
        };
        assert_eq!(first("hot=1G fill=2G"), 4 << 30);
        assert!(first("hot=1028M") < 1 << 30, "it does not fit");
        assert!(first("hot=8M fill=3G") < 1 << 30, "the fill needs a part of it");
    }
}
