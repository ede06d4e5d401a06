//! How a source has its pages travel, and what its record says of that.

use std::time::Duration;

use migrated_engine::source::{Compressed, Encoding, Next, Sent, Source, SourceConfig, SourceEvent};
use migrated_engine::{Compression, EncodedPages, Limits, MigrationRecord, Mode, policy_for};
use migrated_pages::{RamBlock, RamLayout};
use migrated_wire::{GuestIdentity, LZ4_SINCE, PROTOCOL, ToSource, VerifyWhen};

const NOW: Duration = Duration::from_millis(1);
const US: Duration = Duration::from_micros(1);

/// A source in its first round, which may send 8 Mbit/s on two channels.
fn source(version: u16, compression: Compression) -> Source {
    let layout =
        RamLayout::new(vec![RamBlock { name: "ram0".into(), guest_base: 0, pages: 10_000 }]).unwrap();
    let config = SourceConfig {
        identity: GuestIdentity { layout, sections: Vec::new(), cpu: Vec::new().into() },
        epoch: 1,
        mode: Mode::Precopy,
        channels: 2,
        verify: VerifyWhen::Off,
        compression,
        limits: Limits { bandwidth_bps: Some(8_000_000), ..Limits::default() },
        guest_clock: None,
        peer: "there".into(),
    };
    let record = MigrationRecord::default();
    let mut source = Source::new(config, record, policy_for(Mode::Precopy), Duration::ZERO);
    source.handle(NOW, SourceEvent::Connected { version });
    let accepted = ToSource::PreflightOk { rehearsal_us: 1_000, no_postcopy: None };
    source.handle(NOW, SourceEvent::Message(accepted));
    source.handle(NOW, SourceEvent::TrackingStarted);
    assert_eq!(source.next_batch(NOW, 0, &mut Vec::new()), Next::Pages { iteration: 1 });
    source
}

fn decisions(source: &mut Source) -> Vec<(String, String)> {
    let made = source.record(NOW).decisions.into_iter().map(|one| (one.decision, one.reason));
    made.filter(|(decision, _)| decision.starts_with("encode_")).collect()
}

/// 15 of 256 pages were compressed, to half their size, in 45 µs.
fn probed() -> Sent {
    let lz4 = Compressed { tried: 15, took: 45 * US, pages: 15, bytes: 15 * 2048 };
    let sending = 100 * US;
    let (data_pages, bytes) = (200, 185 * 4096 + lz4.bytes);
    Sent { data_pages, zero_pages: 56, bytes, lz4, busy: sending + lz4.took, sending }
}

#[test]
fn the_second_batch_looks_and_what_it_finds_decides_with_its_reason() {
    let mut source = source(PROTOCOL.max, Compression::Auto);
    assert_eq!(source.lane_encoding(), Encoding::Probe);
    assert_eq!(source.lane_encoding(), Encoding::Raw, "one look at a time");
    source.batch_sent(NOW, probed());
    assert_eq!(source.lane_encoding(), Encoding::Lz4);
    let [(decision, reason)] = &decisions(&mut source)[..] else { panic!("one decision") };
    assert_eq!(decision, "encode_lz4");
    // Half a megabyte a second for each channel.
    let expected =
        "compressing takes 3.00 µs a page and saves 2048 bytes, which take 4096.00 µs at the 0.5 MiB/s";
    assert!(reason.starts_with(expected), "{reason}");
    let counts = source.record(NOW).encodings;
    assert_eq!(counts.raw, EncodedPages { pages: 185, bytes: 185 * 4096 });
    assert_eq!(counts.zero, EncodedPages { pages: 56, bytes: 0 });
    assert_eq!(counts.lz4, EncodedPages { pages: 15, bytes: 15 * 2048 });
    assert_eq!(counts.saved_bytes, 15 * 2048);
    assert!((counts.compress_ms - 0.045).abs() < 1e-9, "{counts:?}");
    assert_eq!(source.record(NOW).ram.pages_sent, 200);
}

#[test]
fn neither_an_older_peer_nor_one_who_does_not_want_it_gets_compressed_pages() {
    let mut old = source(LZ4_SINCE - 1, Compression::Auto);
    let mut off = source(PROTOCOL.max, Compression::Off);
    for source in [&mut old, &mut off] {
        for _ in 0..100 {
            assert_eq!(source.lane_encoding(), Encoding::Raw);
            source.batch_sent(NOW, probed());
        }
    }
    let [(decision, reason)] = &decisions(&mut old)[..] else { panic!("one decision") };
    assert!(decision == "encode_raw" && reason.contains("version 5"), "{reason}");
    assert!(decisions(&mut off).is_empty(), "nothing was decided here");
}
