use std::time::{Duration, Instant};

/// Time between two looks.
const PERIOD: Duration = Duration::from_millis(5);

/// Looks again and again until `is` holds, for what nobody announces: another process's state, say. The
/// one place where tests sleep; where there is an event, wait for that.
///
/// # Panics
/// When `patience` is over, naming `what`. Patience is no measure of speed: make it generous.
#[track_caller]
pub fn wait_until(what: &str, patience: Duration, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < patience, "{what}: not within {patience:?}");
        std::thread::sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_until_it_holds() {
        let mut looks = 0;
        wait_until("three looks", Duration::from_secs(60), || {
            looks += 1;
            looks == 3
        });
        assert_eq!(looks, 3);
    }

    #[test]
    #[should_panic(expected = "the impossible: not within 0ns")]
    fn it_names_what_did_not_come() {
        wait_until("the impossible", Duration::ZERO, || false);
    }
}
