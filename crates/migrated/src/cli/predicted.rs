//! What was expected of a migration, for people, beside what became of it.

use migrated_api::{MigrationRecord, ModePrediction, Prediction};

use crate::units::show_us;

/// Rows of a report: none where nothing was expected.
pub fn rows(record: &MigrationRecord) -> Vec<Vec<String>> {
    let Some(predicted) = &record.predicted else { return Vec::new() };
    let mut rows = vec![vec!["expected".into(), line(&predicted.start)]];
    rows.extend(predicted.decision.as_ref().map(|decision| vec!["decided by".into(), line(decision)]));
    rows
}

fn line(expected: &Prediction) -> String {
    let Prediction { at_ms, confidence, precopy, precopy_throttled, hybrid, postcopy, .. } = expected;
    let modes = [
        ("pre-copy", precopy),
        ("throttled", precopy_throttled),
        ("hybrid", hybrid),
        ("post-copy", postcopy),
    ];
    let modes = modes.into_iter().filter(|(_, mode)| mode.possible);
    let modes: Vec<_> = modes.map(|(name, mode)| format!("{name} {}", cost(mode))).collect();
    let at = show_us(at_ms * 1e3);
    format!("at {at}: {} (confidence {confidence:.2})", modes.join("; "))
}

fn cost(mode: &ModePrediction) -> String {
    // The total of a pre-copy that doesn't converge is a mere bound.
    if !mode.converges {
        return "does not converge".into();
    }
    format!("{}, {} down", show_us(mode.total_ms * 1e3), show_us(mode.downtime_ms * 1e3))
}
