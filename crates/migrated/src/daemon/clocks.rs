//! Whether the wall clocks of two hosts agree.
//!
//! A guest's clocks go on at the destination by what the wall clocks of both hosts say has passed, so they jump by what
//! those differ. How long a question and its answer took is not known, but that neither arrived before it was sent is:
//! the peer's clock is ahead of ours by no more than (when it was asked, by its clock) − (when we asked, by ours), and
//! by no less than (when it answered) − (when we had the answer). A slow answer widens that, and accuses nobody.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use migrated_api::AnsweredAt;

/// Hosts that follow a time server differ by some ms. A guest whose clocks jump by this or more is better
/// not moved: its timers fire early, its leases and tickets expire.
const TOLERANCE: Duration = Duration::from_secs(1);

/// Code of clocks that differ too much.
pub const CLOCKS_DISAGREE: &str = "clocks_disagree";

/// This host's wall clock when a question came or was asked, in µs since 1970.
#[derive(Clone, Copy, Debug)]
pub struct AskedAt(u64);

impl AskedAt {
    pub fn now() -> Self {
        Self(unix_us())
    }

    /// For whoever asked this host.
    pub fn answered(self) -> AnsweredAt {
        AnsweredAt { asked_unix_us: self.0, answered_unix_us: unix_us() }
    }

    /// Compares with the clock of a host that was asked then and has answered now.
    ///
    /// # Errors
    /// In words, when they differ by more than a guest should be made to jump.
    pub fn compare(self, peer: &str, theirs: AnsweredAt) -> Result<(), String> {
        compare(peer, self.0, theirs, unix_us())
    }
}

fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

fn compare(peer: &str, asked: u64, theirs: AnsweredAt, got: u64) -> Result<(), String> {
    let tolerance = TOLERANCE.as_micros() as u64;
    let ahead = theirs.answered_unix_us.saturating_sub(got);
    let behind = asked.saturating_sub(theirs.asked_unix_us);
    let (by, which) = if ahead >= behind { (ahead, "ahead of") } else { (behind, "behind") };
    if by <= tolerance {
        return Ok(());
    }
    Err(format!(
        "the clock of {peer} is {:.1} s {which} this host's, and the guest's would jump by that: let both hosts \
         follow a time server (chrony, systemd-timesyncd)",
        by as f64 / 1e6
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// We ask at second 100 and have the answer `took` seconds later; the peer, whose clock shows `off` seconds more,
    /// answers at once in the middle of that.
    fn judged(off: i64, took: u64) -> Result<(), String> {
        let asked = 100 * SECOND;
        let middle = (asked + took * SECOND / 2).saturating_add_signed(off * SECOND as i64);
        let theirs = AnsweredAt { asked_unix_us: middle, answered_unix_us: middle };
        compare("b", asked, theirs, asked + took * SECOND)
    }

    #[test]
    fn clocks_that_are_seconds_apart_are_refused_in_both_directions() {
        assert_eq!(judged(0, 0), Ok(()));
        assert_eq!(judged(1, 0), Ok(()));
        assert!(judged(2, 0).unwrap_err().contains("2.0 s ahead of"));
        assert!(judged(-3, 0).unwrap_err().contains("3.0 s behind"));
        assert!(judged(-1_000, 0).is_err(), "one that was never set");
    }

    #[test]
    fn an_answer_that_takes_long_accuses_nobody() {
        assert_eq!(judged(0, 60), Ok(()));
        assert_eq!(judged(20, 60), Ok(()));
        assert!(judged(40, 60).is_err() && judged(-40, 60).is_err());
    }

    #[test]
    fn preparing_for_long_makes_no_difference() {
        let theirs = AnsweredAt { asked_unix_us: 100 * SECOND, answered_unix_us: 130 * SECOND };
        assert_eq!(compare("b", 100 * SECOND, theirs, 130 * SECOND), Ok(()));
        let ahead = AnsweredAt { asked_unix_us: 102 * SECOND, answered_unix_us: 132 * SECOND };
        assert!(compare("b", 100 * SECOND, ahead, 130 * SECOND).is_err());
    }

    #[test]
    fn what_no_clock_says_is_refused_and_nothing_else() {
        let theirs = |asked_unix_us, answered_unix_us| AnsweredAt { asked_unix_us, answered_unix_us };
        assert!(compare("b", SECOND, theirs(u64::MAX, u64::MAX), 2 * SECOND).is_err());
        assert!(compare("b", u64::MAX, theirs(0, 0), u64::MAX).is_err());
    }
}
