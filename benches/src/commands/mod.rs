//! One file a command; what is written of its figures is in `README.md`.

pub mod faults;
pub mod matrix;
pub mod moves;
pub mod prefetch;
pub mod throttle;

use migrated_api::Mode;

/// Bits a second of so many Mbit/s.
const fn mbit(mbit: u64) -> u64 {
    mbit * 1_000_000
}

/// A mode as the command line names it: as the API does.
fn mode(name: &str) -> Result<Mode, String> {
    let known = "precopy, postcopy, hybrid or auto";
    serde_json::from_value(name.into()).map_err(|_| format!("{name:?} is no mode; there is {known}"))
}

/// A mode's name.
const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Precopy => "pre-copy",
        Mode::Postcopy => "post-copy",
        Mode::Hybrid => "hybrid",
        Mode::Auto => "auto",
    }
}
