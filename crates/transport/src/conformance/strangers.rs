use std::io::{ErrorKind, Read};

use migrated_wire::{ChannelRole, Hello, MigrationId, PROTOCOL, RefusalCode, Token, VersionRange};

use super::rig::{Rig, Stranger, control_pair, far, gate, hello, listen, pattern};
use crate::{Incoming, TransportError};

/// A caller with the wrong token, migration or version learns which, by code and in words.
pub fn refusals_carry_their_code(rig: &dyn Rig) {
    let good = hello(ChannelRole::Control);
    let newer = VersionRange { min: PROTOCOL.max + 1, max: PROTOCOL.max + 2 };
    let wrong = [
        (Hello { token: Token([1; 32]), ..good }, RefusalCode::Token),
        (Hello { migration: MigrationId([1; 16]), ..good }, RefusalCode::Token),
        (Hello { versions: newer, ..good }, RefusalCode::Version),
    ];
    let (mut listener, endpoint) = listen(rig);
    let hangup = listener.hangup();
    std::thread::scope(|scope| {
        let accepted = scope.spawn(|| listener.accept(&gate(), far()).map(drop));
        for (hello, code) in wrong {
            let control = rig.transport().connect_control(&endpoint, &hello, far()).map(drop);
            let data = rig.transport().connect_data(&endpoint, &hello, far()).map(drop);
            for result in [control, data] {
                match result {
                    Err(TransportError::Refused { refusal, .. }) => {
                        assert_eq!(refusal.code, code);
                        assert!(!refusal.text.is_empty());
                    }
                    other => panic!("want Refused with {code:?}, got {other:?}"),
                }
            }
        }
        hangup.hang_up();
        let accepted = accepted.join().expect("accept");
        assert!(matches!(accepted, Err(TransportError::Lost { .. })), "a wrong caller was let in");
    });
}

/// What strangers say to a port.
fn garbage() -> Vec<Vec<u8>> {
    let mut client_hello = vec![0x16, 3, 1, 0x02, 0x00, 1, 0, 0x01, 0xfc, 3, 3];
    client_hello.extend(pattern(5, 512 - 6));
    let mut almost = hello(ChannelRole::Control).encode().to_vec();
    almost[8] = 0xff;
    let mut shouted = b"GET / HTTP/1.1\r\nHost: here\r\nUser-Agent: a scanner of ports\r\n".to_vec();
    shouted.extend(b"Accept: */*\r\n\r\n".repeat(100));
    vec![shouted, client_hello, pattern(1, 64), pattern(2, 100_000), vec![0; 70_000], almost]
}

/// Other protocols, noise and an unknown role end with the connection closed, and a good caller gets in afterwards.
pub fn strangers_are_dropped(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    std::thread::scope(|scope| {
        for bytes in garbage() {
            let mut stranger = rig.stranger(&endpoint);
            scope.spawn(move || {
                // It may be cut off while it still talks.
                let _ = stranger.write_all(&bytes);
                ends_soon(stranger);
            });
        }
        drop(control_pair(rig, listener.as_mut(), &endpoint));
    });
    drop(control_pair(rig, listener.as_mut(), &endpoint));
}

/// Reads until the listener hangs up on the stranger; an answer, if any, is short.
fn ends_soon(mut stranger: Box<dyn Stranger>) {
    let mut answer = Vec::new();
    match stranger.as_mut().take(10_000).read_to_end(&mut answer) {
        Ok(_) => assert!(answer.len() < 10_000, "a stranger got a long answer"),
        Err(error) => assert!(
            !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "the listener keeps a stranger: {error}"
        ),
    }
}

/// More silent callers than there are places for do not keep a good one out, nor do they stay for ever.
pub fn strangers_do_not_block_good_callers(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    let mut strangers: Vec<_> = (0..40).map(|_| rig.stranger(&endpoint)).collect();
    for (half, stranger) in strangers.iter_mut().enumerate() {
        // Some say nothing, some stop in the middle of a hello.
        let bytes = hello(ChannelRole::Control).encode();
        stranger.write_all(&bytes[..half]).expect("a few bytes");
    }
    let ends = control_pair(rig, listener.as_mut(), &endpoint);
    for stranger in strangers {
        ends_soon(stranger);
    }
    drop(ends);
}

/// A caller that talks without end is cut off after at most a few MiB in flight, and a good one gets in meanwhile.
pub fn endless_garbage_ends(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    std::thread::scope(|scope| {
        let mut stranger = rig.stranger(&endpoint);
        let talker = scope.spawn(move || {
            let noise = pattern(3, 1 << 20);
            (0..1024).position(|_| stranger.write_all(&noise).is_err())
        });
        let good = rig.transport();
        let endpoint = &endpoint;
        let caller = scope
            .spawn(move || good.connect_control(endpoint, &hello(ChannelRole::Control), far()).map(drop));
        let incoming = listener.accept(&gate(), far()).expect("the good caller");
        assert!(matches!(incoming, Incoming::Control { .. }));
        caller.join().expect("caller").expect("the good caller is let in");
        let after = talker.join().expect("talker").expect("1 GiB of noise was taken");
        assert!(after < 64, "the noise was taken for {after} MiB");
    });
}
