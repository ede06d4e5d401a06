//! What comes to the source for a guest that has left.

use migrated_engine::{MigrationState, Mode};
use migrated_guest::LateInput;
use migrated_wire::VerifyWhen;

use crate::check;
use crate::guest::Tap;
use crate::rig::{Case, Network, migrate};

/// Frames of many sizes, more than one message takes.
fn frames() -> Vec<LateInput> {
    let frame = |n: u32| LateInput { device: n % 3, data: vec![n as u8; 60 + (n as usize * 397) % 30_000] };
    (0..40).map(frame).collect()
}

#[test]
fn what_came_after_the_pause_reaches_the_guest_where_it_runs() {
    for mode in [Mode::Precopy, Mode::Postcopy] {
        for network in [Network::Memory, Network::Tcp] {
            let tap = Tap::with(frames());
            let verify = VerifyWhen::After;
            let ending =
                migrate(&Case { mode, network, verify, tap: tap.clone(), ..Case::default() }, |_, _| {});
            check(&ending);
            assert_eq!(ending.record.state, Some(MigrationState::Completed), "{:?}", ending.record.error);
            let delivered = tap.delivered();
            // All that the looks of the migration's time took, in order, and nothing else.
            assert_eq!(delivered[..], frames()[..delivered.len()]);
            assert_eq!(delivered.len() + tap.waiting(), frames().len());
            assert!(delivered.len() >= 20, "{mode:?}: two looks find more than {}", delivered.len());
            let (here, there) = (ending.record.late_frames, ending.destination_record.late_frames);
            assert_eq!((here.frames, here.dropped), (delivered.len() as u64, 0));
            assert_eq!(here, there);
            assert_eq!(ending.record.first_packet_us, Some(3.0));
        }
    }
}

#[test]
fn a_guest_that_comes_back_has_its_frames_here() {
    let tap = Tap::with(frames());
    let ending = migrate(&Case { record_fails: true, tap: tap.clone(), ..Case::default() }, |_, _| {});
    check(&ending);
    assert_eq!(tap.waiting(), frames().len());
    assert!(tap.delivered().is_empty());
    assert_eq!(ending.record.late_frames.frames, 0);
}
