use migrated_wire::ChannelRole;
use vm_memory::VolatileSlice;

use super::rig::{FAR, Link, Rig, far, gate, hello, listen, pattern};
use crate::memory::{Cut, Direction};
use crate::{Incoming, TransportError};

/// A control channel that breaks at any byte, from the first of its handshake to the last of a message, in either
/// direction, is an error for who waits for the byte: never success, never a hang.
pub fn control_cut_at_every_byte(rig: &dyn Rig) {
    at_every_byte(rig, control_exchange);
}

/// The same for a page channel's handshake, head and payload.
pub fn data_cut_at_every_byte(rig: &dyn Rig) {
    at_every_byte(rig, data_exchange);
}

/// What each end got to.
#[derive(Debug)]
struct Outcome {
    /// The listener's end received all that it waited for.
    listener: Result<(), TransportError>,
    /// The caller's end received all that it waited for.
    caller: Result<(), TransportError>,
    /// Bytes that passed until then.
    passed: [u64; 2],
}

type Exchange = fn(&dyn Rig, Option<Cut>) -> Outcome;

fn at_every_byte(rig: &dyn Rig, exchange: Exchange) {
    let whole = exchange(rig, None);
    whole.listener.expect("an exchange without a cut");
    whole.caller.expect("an exchange without a cut");
    for direction in [Direction::ToListener, Direction::ToCaller] {
        let needed = whole.passed[direction as usize];
        assert!(needed > rig.slack());
        for after in 0..needed - rig.slack() {
            let outcome = exchange(rig, Some(Cut { direction, after }));
            let who_waited = match direction {
                Direction::ToListener => &outcome.listener,
                Direction::ToCaller => &outcome.caller,
            };
            assert!(who_waited.is_err(), "cut {direction:?} after {after} of {needed} bytes: {outcome:?}");
        }
    }
}

/// Request and answer over a control channel.
fn control_exchange(rig: &dyn Rig, cut: Option<Cut>) -> Outcome {
    run(
        rig,
        cut,
        |link| {
            let (mut sender, mut receiver, _) =
                link.transport.get().connect_control(&link.endpoint, &hello(ChannelRole::Control), far())?;
            sender.send(&pattern(1, 150))?;
            assert!(receiver.recv(1000, FAR)? == pattern(2, 100), "another answer");
            Ok(Box::new((sender, receiver)))
        },
        |incoming| {
            let Incoming::Control { mut sender, mut receiver, .. } = incoming else { panic!("page channel") };
            assert!(receiver.recv(1000, FAR)? == pattern(1, 150), "another request");
            // Whether the answer arrives is for the caller to say.
            let _ = sender.send(&pattern(2, 100));
            Ok(Box::new((sender, receiver)))
        },
    )
}

/// One frame over a page channel.
fn data_exchange(rig: &dyn Rig, cut: Option<Cut>) -> Outcome {
    run(
        rig,
        cut,
        |link| {
            let role = ChannelRole::Page(0);
            let mut sender = link.transport.get().connect_data(&link.endpoint, &hello(role), far())?;
            let (mut one, mut two) = (pattern(2, 100), pattern(3, 50));
            let payload = [VolatileSlice::from(&mut one[..]), VolatileSlice::from(&mut two[..])];
            // Whether the frame arrives is for the listener to say.
            let _ = sender.send(&pattern(1, 16), &payload);
            Ok(Box::new(sender))
        },
        |incoming| {
            let Incoming::Data { mut receiver, .. } = incoming else { panic!("control channel") };
            let (mut head, mut payload) = ([0; 16], [0; 150]);
            receiver.read_exact(&mut head)?;
            receiver.read_payload(&[VolatileSlice::from(&mut payload[..])])?;
            assert!(head[..] == pattern(1, 16), "another head");
            assert!(payload[..100] == pattern(2, 100) && payload[100..] == pattern(3, 50), "another payload");
            Ok(Box::new(receiver))
        },
    )
}

/// An end of a channel, kept open until both ends are done.
type End = Box<dyn std::any::Any>;

fn run(
    rig: &dyn Rig,
    cut: Option<Cut>,
    call: impl FnOnce(&Link<'_>) -> Result<End, TransportError>,
    serve: impl FnOnce(Incoming) -> Result<End, TransportError> + Send,
) -> Outcome {
    let (mut listener, endpoint) = listen(rig);
    let link = rig.link(&endpoint, cut);
    let hangup = listener.hangup();
    std::thread::scope(|scope| {
        let (to_server, caller_done) = std::sync::mpsc::channel::<()>();
        let server = scope.spawn(move || {
            let end = serve(listener.accept(&gate(), far())?)?;
            // Until the caller is done: a close must not stand in for the cut.
            let _ = caller_done.recv();
            drop(end);
            Ok(())
        });
        let caller = call(&link);
        if caller.is_err() {
            // It may never have reached the listener, which then has nobody to wait for.
            hangup.hang_up();
        }
        drop(to_server);
        let listener = server.join().expect("the listener's end");
        let passed = [Direction::ToListener, Direction::ToCaller].map(|direction| (link.passed)(direction));
        Outcome { listener, caller: caller.map(drop), passed }
    })
}
