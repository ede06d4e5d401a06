use std::path::PathBuf;

use thiserror::Error;

/// Why a matrix can't be used.
#[derive(Debug, Error)]
pub enum MatrixError {
    /// The file can't be read.
    #[error("can't read the matrix {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not the TOML of a matrix; the message names line and key.
    #[error("the matrix {} is wrong: {source}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        source: Box<toml::de::Error>,
    },
    /// Two scenarios have one name.
    #[error("two scenarios are called {name:?}; --only could not tell them apart, so rename one")]
    Twice {
        /// The name.
        name: String,
    },
    /// A scenario without anything to move its guest.
    #[error("scenario {scenario:?} has neither `mode` nor `qemu`; say how its guest is moved")]
    Nobody {
        /// The scenario.
        scenario: String,
    },
    /// A rule that excludes nothing.
    #[error("exclude rule {rule} of scenario {scenario:?} matches nothing; correct or remove it")]
    IdleRule {
        /// The scenario.
        scenario: String,
        /// The rule, from 1.
        rule: usize,
    },
    /// Everything is excluded.
    #[error("the exclude rules of scenario {scenario:?} leave nothing; remove it or one of them")]
    Nothing {
        /// The scenario.
        scenario: String,
    },
    /// A number out of its range.
    #[error("`{key}` is {value}; it must be {range}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// No scenario of that name.
    #[error("there is no scenario {name:?} in the matrix; there are {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
        /// All names.
        known: Vec<String>,
    },
}
