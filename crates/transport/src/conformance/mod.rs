//! What every transport must do, as checks that a transport's tests run over a [`Rig`].
//!
//! [`conformance_tests!`](crate::conformance_tests) makes one `#[test]` of each. A check panics with what went wrong.

mod channels;
mod cuts;
mod proxy;
mod rig;
mod strangers;
mod waits;

pub use channels::{
    bytes_are_counted, channels_are_independent, close_is_lost, data_arrives_in_order,
    halves_do_not_wait_for_each_other, messages_arrive_in_order, oversize_is_refused,
    pressure_stops_the_sender,
};
pub use cuts::{control_cut_at_every_byte, data_cut_at_every_byte};
pub use proxy::CuttingProxy;
pub use rig::{Link, Rig, Stranger, Via};
pub use strangers::{
    endless_garbage_ends, refusals_carry_their_code, strangers_are_dropped,
    strangers_do_not_block_good_callers,
};
pub use waits::{
    deadlines_end_waits, hangup_ends_accept, hangup_ends_read, hangup_ends_recv, hangup_ends_send,
    nobody_listens, ports_come_from_the_range,
};

/// One `#[test]` for each check of the suite, over the rig that the expression makes.
#[macro_export]
macro_rules! conformance_tests {
    ($rig:expr) => {
        $crate::conformance_tests!(@each $rig;
            messages_arrive_in_order data_arrives_in_order halves_do_not_wait_for_each_other channels_are_independent pressure_stops_the_sender
            close_is_lost oversize_is_refused bytes_are_counted deadlines_end_waits hangup_ends_send
            hangup_ends_recv hangup_ends_read hangup_ends_accept nobody_listens ports_come_from_the_range
            refusals_carry_their_code strangers_are_dropped strangers_do_not_block_good_callers
            endless_garbage_ends control_cut_at_every_byte data_cut_at_every_byte);
    };
    (@each $rig:expr; $($check:ident)*) => {
        $(#[test] fn $check() { $crate::conformance::$check(&$rig); })*
    };
}
