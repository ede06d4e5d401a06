//! Matrices of scenarios: files that say what is measured, and the runs that come of them.
//!
//! [`Matrix`] is a file; multiplied out ([`Matrix::settings`]) it is a list of [`Setting`]s, each a link and a guest with
//! the variants that move the guest in turn. [`play`] does that, run by run ([`Run`]), and [`tables`] sums up.

mod axes;
mod convergence;
mod error;
mod file;
mod list;
mod run;
mod setting;
mod stage;
mod summary;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use axes::{Content, Link, Pattern, Rate, Variant, Way};
pub use convergence::{Rated, over_rates, share};
pub use error::MatrixError;
pub use file::{Exclude, Matrix, Rounds, Scenario};
pub use list::List;
pub use run::{Outcome, Run, read};
pub use setting::{Limits, Setting, Workload};
pub use stage::{Programs, play};
pub use summary::{Group, Narrowed, by_variant, group, median, refusals, tables};
