use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use migrated_wire::ChannelRole;
use vm_memory::VolatileSlice;

use super::channels::assert_lost;
use super::rig::{
    FAR, MIGRATION, Rig, control_pair, data_pair, far, gate, hello, listen, my_tid, when_asleep,
};
use crate::{Hangup, TransportError};

/// Long enough to be a wait, short enough for a test.
const MOMENT: Duration = Duration::from_millis(20);

/// A peer that accepts and never answers costs no more than the deadline, in every call that has one.
pub fn deadlines_end_waits(rig: &dyn Rig) {
    let (silent, endpoint) = listen(rig);
    let soon = || Instant::now() + MOMENT;
    let control = rig.transport().connect_control(&endpoint, &hello(ChannelRole::Control), soon());
    assert_timed_out(control.map(drop));
    let data = rig.transport().connect_data(&endpoint, &hello(ChannelRole::Urgent), soon());
    assert_timed_out(data.map(drop));
    let late = rig.transport().connect_data(&endpoint, &hello(ChannelRole::Urgent), Instant::now());
    assert_timed_out(late.map(drop));
    drop(silent);

    let (mut listener, endpoint) = listen(rig);
    assert_timed_out(listener.accept(&gate(), soon()).map(drop));
    let (mut near, mut far) = control_pair(rig, listener.as_mut(), &endpoint);
    for _ in 0..2 {
        assert_timed_out(near.1.recv(64, MOMENT).map(<[u8]>::len));
    }
    far.0.send(b"late").expect("send");
    assert_eq!(near.1.recv(64, FAR).expect("the channel stays usable"), b"late");
}

fn assert_timed_out<T: std::fmt::Debug>(result: Result<T, TransportError>) {
    assert!(matches!(result, Err(TransportError::TimedOut { .. })), "want TimedOut, got {result:?}");
}

/// Runs `call` on a thread of its own and hangs up as soon as that sleeps: the call must say `Lost`.
fn interrupted<T: std::fmt::Debug + Send>(
    hangup: &Hangup,
    call: impl FnOnce() -> Result<T, TransportError> + Send,
) {
    std::thread::scope(|scope| {
        let (to_us, tid) = mpsc::channel();
        let call = scope.spawn(move || {
            to_us.send(my_tid()).expect("the test waits");
            call()
        });
        when_asleep(&tid.recv().expect("its thread id"), || hangup.hang_up());
        assert_lost(call.join().expect("the call returned"));
    });
    hangup.hang_up();
}

/// Hanging up ends a send that waits for the peer to read.
pub fn hangup_ends_send(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    let (mut sender, receiver) = data_pair(rig, listener.as_mut(), &endpoint, ChannelRole::Page(1));
    let hangup = sender.hangup();
    interrupted(&hangup, || -> Result<(), _> {
        let mut bytes = vec![0; 1 << 20];
        loop {
            sender.send(&[], &[VolatileSlice::from(&mut bytes[..])])?;
        }
    });
    drop(receiver);
    let (mut near, far) = control_pair(rig, listener.as_mut(), &endpoint);
    let hangup = near.0.hangup();
    interrupted(&hangup, || -> Result<(), _> {
        loop {
            near.0.send(&[0; 1 << 20])?;
        }
    });
    drop(far);
}

/// Hanging up ends a wait for a control message, and the channel with it.
pub fn hangup_ends_recv(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    let (mut near, mut far) = control_pair(rig, listener.as_mut(), &endpoint);
    let hangup = near.0.hangup();
    interrupted(&hangup, || near.1.recv(64, FAR).map(<[u8]>::len));
    assert_lost((0..1024).try_for_each(|_| near.0.send(&[0; 64 << 10])));
    assert_lost(far.1.recv(64, FAR).map(<[u8]>::len));
}

/// Hanging up ends a wait for a head and for a payload.
pub fn hangup_ends_read(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    let (sender, mut receiver) = data_pair(rig, listener.as_mut(), &endpoint, ChannelRole::Page(1));
    let hangup = receiver.hangup();
    interrupted(&hangup, || receiver.read_exact(&mut [0; 16]));
    drop(sender);
    let (mut sender, mut receiver) = data_pair(rig, listener.as_mut(), &endpoint, ChannelRole::Page(1));
    sender.send(&[1; 100], &[]).expect("send");
    let hangup = receiver.hangup();
    interrupted(&hangup, || receiver.read_payload(&[VolatileSlice::from(&mut [0; 101][..])]));
}

/// Hanging up ends a wait for channels, for good.
pub fn hangup_ends_accept(rig: &dyn Rig) {
    let (mut listener, endpoint) = listen(rig);
    let hangup = listener.hangup();
    interrupted(&hangup, || listener.accept(&gate(), far()).map(drop));
    assert_lost(listener.accept(&gate(), far()).map(drop));
    drop(listener);
    nobody_at(rig, &endpoint);
}

/// Dialling where nobody listens fails at once and names the address.
pub fn nobody_listens(rig: &dyn Rig) {
    let (listener, endpoint) = listen(rig);
    drop(listener);
    nobody_at(rig, &endpoint);
}

fn nobody_at(rig: &dyn Rig, endpoint: &crate::Endpoint) {
    match rig.transport().connect_control(endpoint, &hello(ChannelRole::Control), far()) {
        Err(error @ TransportError::Unreachable { .. }) => {
            assert!(error.to_string().contains(&endpoint.addr.to_string()), "{error}");
        }
        other => panic!("want Unreachable, got {:?}", other.map(drop)),
    }
}

/// A listener takes the first free port of its range, and says so when there is none.
pub fn ports_come_from_the_range(rig: &dyn Rig) {
    let (taken, endpoint) = listen(rig);
    let port = endpoint.addr.port();
    let range = port..=port.saturating_add(50);
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let next = rig.transport().listen(ip, range.clone(), MIGRATION).expect("50 ports are not all taken");
    assert!(range.contains(&next.local_addr().port()) && next.local_addr().port() != port);
    match rig.transport().listen(ip, port..=port, MIGRATION) {
        Err(TransportError::Local { source, .. }) => {
            assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
        }
        other => panic!("want Local, got {:?}", other.map(drop)),
    }
    drop(taken);
}
