use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use migrated_wire::{ChannelRole, WireError};
use vm_memory::VolatileSlice;

use super::rig::{FAR, Rig, control_pair, data_pair, listen, my_tid, pattern, when_asleep};
use crate::TransportError;

/// Control messages arrive whole and in order, in both directions at once, whatever their sizes.
pub fn messages_arrive_in_order(rig: &dyn Rig) {
    const SIZES: [usize; 9] = [0, 1, 3, 4, 5, 4096, 65_535, 65_536, 1 << 20];
    let (mut listener, endpoint) = listen(rig);
    let (near, far) = control_pair(rig, listener.as_mut(), &endpoint);
    std::thread::scope(|scope| {
        for (seed, (mut sender, mut receiver)) in [(1, (near.0, far.1)), (2, (far.0, near.1))] {
            scope.spawn(move || {
                for round in 0..4 {
                    for size in SIZES {
                        sender.send(&pattern(seed + round, size)).expect("send");
                    }
                }
                sender
            });
            scope.spawn(move || {
                for round in 0..4 {
                    for size in SIZES {
                        let got = receiver.recv(1 << 20, FAR).expect("recv");
                        assert!(got == pattern(seed + round, size), "a message of {size} bytes differs");
                    }
                }
            });
        }
    });
}

/// Frames arrive whole and in order, from scattered memory into memory scattered differently.
pub fn data_arrives_in_order(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    let (mut sender, mut receiver) = data_pair(rig, listener.as_mut(), &endpoint, ChannelRole::Page(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for frame in 0..8 {
                let mut bytes = pattern(frame, FRAME);
                // More pieces than one system call takes, of odd sizes, some empty.
                let mut pieces: Vec<_> = bytes.chunks_mut(1531).map(VolatileSlice::from).collect();
                pieces.insert(3, VolatileSlice::from(&mut [][..]));
                sender.send(&frame.to_le_bytes(), &pieces).expect("send");
            }
            sender.send(&u64::MAX.to_le_bytes(), &[]).expect("a frame without payload");
        });
        for frame in 0..8 {
            let mut head = [0; 8];
            receiver.read_exact(&mut head).expect("head");
            assert_eq!(u64::from_le_bytes(head), frame);
            let mut bytes = vec![0; FRAME];
            let mut pieces: Vec<_> = bytes.chunks_mut(4096).map(VolatileSlice::from).collect();
            pieces.insert(0, VolatileSlice::from(&mut [][..]));
            receiver.read_payload(&pieces).expect("payload");
            assert!(bytes == pattern(frame, FRAME), "frame {frame} differs");
        }
        let mut head = [0; 8];
        receiver.read_exact(&mut head).expect("the last head");
        receiver.read_payload(&[]).expect("an empty payload");
        assert_eq!(u64::from_le_bytes(head), u64::MAX);
    });
}

const FRAME: usize = 2_000_003;

/// While a page channel is full and nobody reads it, control and other page channels go on.
pub fn channels_are_independent(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    let (mut near, mut far) = control_pair(rig, listener.as_mut(), &endpoint);
    let (mut full, unread) = data_pair(rig, listener.as_mut(), &endpoint, ChannelRole::Page(0));
    let (mut urgent, mut page) = data_pair(rig, listener.as_mut(), &endpoint, ChannelRole::Urgent);
    let hangup = full.hangup();
    std::thread::scope(|scope| {
        let (to_us, tid) = std::sync::mpsc::channel();
        let blocked = scope.spawn(move || {
            to_us.send(my_tid()).expect("the test waits");
            let mut bytes = pattern(0, 1 << 20);
            while full.send(b"head", &[VolatileSlice::from(&mut bytes[..])]).is_ok() {}
        });
        when_asleep(&tid.recv().expect("its thread id"), || {
            near.0.send(b"still there?").expect("send");
            assert_eq!(far.1.recv(64, FAR).expect("recv"), b"still there?");
            far.0.send(b"yes").expect("send");
            assert_eq!(near.1.recv(64, FAR).expect("recv"), b"yes");
            let mut bytes = pattern(9, 4096);
            urgent.send(b"page", &[VolatileSlice::from(&mut bytes[..])]).expect("send");
            let mut got = vec![0; 4 + 4096];
            page.read_exact(&mut got).expect("read");
            assert_eq!(got[4..], bytes);
        });
        hangup.hang_up();
        blocked.join().expect("the sender ended");
    });
    drop(unread);
}

/// Either half of a control channel works while the other waits.
pub fn halves_do_not_wait_for_each_other(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    let (near, mut far) = control_pair(rig, listener.as_mut(), &endpoint);
    let (mut sender, receiver) = near;
    let hangup = sender.hangup();
    std::thread::scope(|scope| {
        let (to_us, tid) = std::sync::mpsc::channel();
        let waiting = scope.spawn(move || {
            let mut receiver = receiver;
            to_us.send(my_tid()).expect("the test waits");
            assert_eq!(receiver.recv(64, FAR).expect("recv"), b"answer");
            receiver
        });
        when_asleep(&tid.recv().expect("its thread id"), || {
            sender.send(b"request").expect("send");
            assert_eq!(far.1.recv(64, FAR).expect("recv"), b"request");
            far.0.send(b"answer").expect("send");
        });
        let mut receiver = waiting.join().expect("the receiver got its answer");

        let (to_us, tid) = std::sync::mpsc::channel();
        let blocked = scope.spawn(move || {
            to_us.send(my_tid()).expect("the test waits");
            while sender.send(&[0; 1 << 20]).is_ok() {}
        });
        when_asleep(&tid.recv().expect("its thread id"), || {
            far.0.send(b"news").expect("send");
            assert_eq!(receiver.recv(64, FAR).expect("recv"), b"news");
        });
        hangup.hang_up();
        blocked.join().expect("the sender ended");
    });
}

/// A sender can't run away from a receiver that doesn't read; when it reads, all arrives.
pub fn pressure_stops_the_sender(rig: &dyn Rig) {
    /// More than any buffer between two ends may hold: 64 MiB.
    const FRAMES: u64 = 64;
    let (mut listener, endpoint) = listen(rig);
    let (mut sender, mut receiver) = data_pair(rig, listener.as_mut(), &endpoint, ChannelRole::Page(0));
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (to_us, tid) = std::sync::mpsc::channel();
        let sent = &sent;
        scope.spawn(move || {
            to_us.send(my_tid()).expect("the test waits");
            let mut bytes = pattern(0, 1 << 20);
            for _ in 0..FRAMES {
                sender.send(&[], &[VolatileSlice::from(&mut bytes[..])]).expect("send");
                sent.fetch_add(1, Ordering::SeqCst);
            }
        });
        when_asleep(&tid.recv().expect("its thread id"), || {});
        assert!(sent.load(Ordering::SeqCst) < FRAMES, "all was taken and nothing was read");
        let mut bytes = vec![0; 1 << 20];
        for frame in 0..FRAMES {
            receiver.read_payload(&[VolatileSlice::from(&mut bytes[..])]).expect("read");
            assert!(bytes == pattern(0, 1 << 20), "frame {frame} differs");
        }
    });
}

/// A peer that goes away is [`TransportError::Lost`] in both halves, on every kind of channel, even if
/// something there still holds a [`Hangup`](crate::Hangup).
pub fn close_is_lost(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    let (mut near, mut far) = control_pair(rig, listener.as_mut(), &endpoint);
    far.0.send(b"last words").expect("send");
    let mut held = vec![far.0.hangup()];
    drop(far);
    assert_eq!(near.1.recv(64, FAR).expect("what was sent before the close"), b"last words");
    assert_lost(near.1.recv(64, FAR).map(<[u8]>::len));
    assert_lost((0..1024).try_for_each(|_| near.0.send(&[0; 64 << 10])));
    assert_lost(near.1.recv(64, FAR).map(<[u8]>::len));

    let (mut sender, receiver) = data_pair(rig, listener.as_mut(), &endpoint, ChannelRole::Page(0));
    held.push(receiver.hangup());
    drop(receiver);
    assert_lost((0..1024).try_for_each(|_| sender.send(&[0; 64 << 10], &[])));

    let (sender, mut receiver) = data_pair(rig, listener.as_mut(), &endpoint, ChannelRole::Page(0));
    held.push(sender.hangup());
    drop(sender);
    assert_lost(receiver.read_exact(&mut [0; 1]));
    drop(held);
}

/// A control message above the limit is refused by its length alone, and ends the channel.
pub fn oversize_is_refused(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    let (mut near, mut far) = control_pair(rig, listener.as_mut(), &endpoint);
    near.0.send(&[7; 100]).expect("send");
    near.0.send(&[7; 101]).expect("send");
    assert_eq!(far.1.recv(100, FAR).expect("at the limit"), [7; 100]);
    match far.1.recv(100, FAR) {
        Err(TransportError::Protocol {
            source: WireError::TooLarge { got: 101, limit: 100, .. }, ..
        }) => {}
        other => panic!("want TooLarge, got {other:?}"),
    }
    assert_lost(far.1.recv(1000, FAR).map(<[u8]>::len));
    assert_lost(near.1.recv(1000, FAR).map(<[u8]>::len));
}

/// What one end sent is what the other received.
pub fn bytes_are_counted(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    let (mut near, mut far) = control_pair(rig, listener.as_mut(), &endpoint);
    let before = near.0.bytes_sent();
    near.0.send(&[1; 1000]).expect("send");
    far.1.recv(1000, FAR).expect("recv");
    assert!(near.0.bytes_sent() - before >= 1000);
    assert_eq!(near.0.bytes_sent(), far.1.bytes_received());
    let timed_out = far.1.recv(1000, Duration::ZERO).map(<[u8]>::len);
    assert!(matches!(timed_out, Err(TransportError::TimedOut { .. })), "{timed_out:?}");

    let (mut sender, mut receiver) = data_pair(rig, listener.as_mut(), &endpoint, ChannelRole::Page(3));
    let mut bytes = pattern(3, 10_000);
    sender.send(b"head", &[VolatileSlice::from(&mut bytes[..])]).expect("send");
    receiver.read_exact(&mut vec![0; 10_004]).expect("read");
    assert!(sender.bytes_sent() >= 10_004);
    assert_eq!(sender.bytes_sent(), receiver.bytes_received());
}

pub(super) fn assert_lost<T: std::fmt::Debug>(result: Result<T, TransportError>) {
    assert!(matches!(result, Err(TransportError::Lost { .. })), "want Lost, got {result:?}");
}
