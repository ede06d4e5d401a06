//! How a guest was slowed, for people.

use migrated_api::{MigrationRecord, Throttled, WriteAttribution};

use crate::units::show_us;

/// Rows of a report: none where the guest was not slowed.
pub fn rows(record: &MigrationRecord) -> Vec<Vec<String>> {
    let Some(throttled) = &record.throttle else { return Vec::new() };
    vec![vec!["throttle".into(), summary(throttled)], vec!["slept".into(), vcpus(throttled)]]
}

fn summary(throttled: &Throttled) -> String {
    let attribution = match throttled.attribution {
        WriteAttribution::FaultCounters => "fault counters",
        WriteAttribution::RunTime => "run time",
    };
    let end = match throttled.released_ms {
        Some(ms) => format!("until {}", show_us(ms * 1e3)),
        None => "and is on".to_owned(),
    };
    format!(
        "at {:.0} pages/s from {} {end}, {:.0} % at most; written pages by {attribution}",
        throttled.budget_pps,
        show_us(throttled.began_ms * 1e3),
        throttled.max_percent,
    )
}

fn vcpus(throttled: &Throttled) -> String {
    let vcpus = throttled.vcpus.iter().enumerate().map(|(index, vcpu)| {
        format!("vCPU {index} {} ({:.1} %)", show_us(vcpu.slept_ms * 1e3), vcpu.percent)
    });
    format!("{} in all: {}", show_us(throttled.lost_ms * 1e3), vcpus.collect::<Vec<_>>().join(", "))
}

/// What is held back now, in a few words; nothing where nothing is.
pub fn progress(record: &MigrationRecord) -> Option<String> {
    let throttled = record.throttle.as_ref().filter(|throttled| throttled.released_ms.is_none())?;
    Some(format!(", throttled to {:.0} pages/s, {:.0} %", throttled.budget_pps, throttled.percent))
}

#[cfg(test)]
mod tests {
    use migrated_api::ThrottledVcpu;

    use super::*;

    #[test]
    fn what_is_held_back_and_what_was_lost_is_told() {
        let vcpu = ThrottledVcpu { slept_ms: 1500.0, percent: 75.0, pages: 9 };
        let throttled = Throttled {
            began_ms: 2000.0,
            budget_pps: 17_000.0,
            percent: 75.0,
            max_percent: 80.0,
            lost_ms: 1500.0,
            vcpus: vec![vcpu, ThrottledVcpu::default()],
            ..Throttled::default()
        };
        let mut record = MigrationRecord { throttle: Some(throttled), ..MigrationRecord::default() };
        assert_eq!(progress(&record).unwrap(), ", throttled to 17000 pages/s, 75 %");
        record.throttle.as_mut().unwrap().released_ms = Some(4000.0);
        assert_eq!(progress(&record), None);
        let text = rows(&record).concat().join(" ");
        for part in
            ["17000 pages/s from 2.00 s until 4.00 s, 80 % at most", "vCPU 0 1.50 s (75.0 %), vCPU 1 0 µs"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(rows(&MigrationRecord::default()).is_empty());
    }
}
