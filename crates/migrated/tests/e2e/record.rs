use migrated_api::{MigrationRecord, MigrationState, Verify};

/// Checks a record of a migration that completed: nothing in it is missing, and it adds up.
#[track_caller]
pub fn assert_complete(record: &MigrationRecord, verify: Verify) {
    assert_eq!((record.state, &record.error), (Some(MigrationState::Completed), &None), "{record:#?}");
    let down = &record.downtime_us;
    let parts = [down.pause, down.final_pages, down.export, down.send, down.import, down.verify, down.resume];
    assert!(parts.iter().all(|part| *part >= 0.0), "{down:?}");
    assert!(down.total > 0.0 && (parts.iter().sum::<f64>() - down.total).abs() < 1.0, "{down:?}");
    assert!(record.setup_ms > 0.0 && record.total_ms > record.setup_ms, "{record:#?}");
    assert!(record.throughput_bps > 0.0 && record.channels > 0, "{record:#?}");
    assert!(record.remaining_pages == 0 && record.started_unix_ms > 0, "{record:#?}");
    assert_memory(record, verify);
    assert!(!record.decisions.is_empty() && record.decisions.iter().all(|d| !d.reason.is_empty()));
    assert!(record.decisions.is_sorted_by(|a, b| a.at_ms <= b.at_ms), "{:?}", record.decisions);
}

fn assert_memory(record: &MigrationRecord, verify: Verify) {
    let ram = &record.ram;
    assert!(ram.pages > 0 && ram.bytes == ram.pages * 4096, "{ram:?}");
    assert!(ram.pages_sent + ram.pages_zero >= ram.pages, "{ram:?}");
    let first = record.iterations.first().unwrap();
    let is_cut = record.decisions.iter().any(|decision| decision.decision == "cut_round_short");
    assert!(
        first.n == 1 && (first.pages == ram.pages || is_cut),
        "the first round is all of RAM: {record:#?}"
    );
    assert!(record.iterations.iter().enumerate().all(|(at, round)| round.n as usize == at + 1));
    let pages: u64 = record.iterations.iter().map(|round| round.pages).sum();
    // A page that is asked for while it waits in a page channel's queue goes once more.
    let twice = record.postcopy.as_ref().map_or(0, |followed| followed.requests_duplicate);
    assert!((pages..=pages + twice).contains(&(ram.pages_sent + ram.pages_zero)), "{record:#?}");
    let sent = &record.encodings;
    assert_eq!((sent.raw.pages + sent.lz4.pages, sent.zero.pages), (ram.pages_sent, ram.pages_zero));
    let payload = sent.raw.bytes + sent.lz4.bytes;
    assert_eq!((sent.raw.bytes, payload + sent.saved_bytes), (sent.raw.pages * 4096, ram.pages_sent * 4096));
    assert!(record.wire_bytes.sent > payload && record.wire_bytes.received > 0, "{record:#?}");
    match (&record.verified, verify) {
        (None, Verify::Off) => {}
        (Some(verified), asked) => {
            assert_eq!((verified.method, verified.pages, verified.mismatches), (asked, ram.pages, 0));
        }
        (None, _) => panic!("memory was not compared: {record:#?}"),
    }
}
