//! The parts of which measurements are made: hosts on a link, guests on them, what is seen of a guest that moves,
//! statistics, reports. They use the program `migrated` and its HTTP API as anybody does.
//!
//! In the order in which a measurement uses them: [`lab`] starts two daemons in two network namespaces, [`guest`]
//! makes a workload guest and warms it up, [`journey`] moves it while [`watch`] looks at it, [`statistics`] sums
//! up, [`report`] prints and keeps what was seen. [`qemu`] moves the same guest under QEMU. [`matrix`] does all that
//! for whole files of scenarios, and [`plot`] draws what came of them.

pub mod cost;
pub mod facts;
pub mod guest;
pub mod journey;
pub mod lab;
pub mod matrix;
pub mod payload;
pub mod plot;
pub mod qemu;
pub mod report;
pub mod rtt;
pub mod signals;
pub mod statistics;
pub mod watch;
