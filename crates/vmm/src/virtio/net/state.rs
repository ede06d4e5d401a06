use serde::{Deserialize, Serialize};

use super::Net;
use super::addresses::Addresses;
use crate::state::{decode, encode};

/// What of a card moves with its guest.
#[derive(Debug, Serialize, Deserialize)]
struct NetState {
    /// Its configuration, which the driver has read: another card can't take it over.
    mac: [u8; 6],
    mtu: Option<u16>,
    asked_to_announce: bool,
    addresses: Addresses,
    /// The frame that was read and waits for buffers; empty when there is none.
    waiting: Vec<u8>,
    /// Frames that another host handed over and that come after it.
    delivered: Vec<Vec<u8>>,
}

pub(super) fn save(net: &Net) -> Vec<u8> {
    encode(&NetState {
        mac: net.mac,
        mtu: net.mtu,
        asked_to_announce: net.asked_to_announce,
        addresses: net.addresses.clone(),
        waiting: net.receiver.waiting().to_vec(),
        delivered: net.handle.delivered(),
    })
}

/// # Errors
/// In words.
pub(super) fn restore(net: &mut Net, data: &[u8]) -> Result<(), String> {
    let state: NetState = decode(data)?;
    if (state.mac, state.mtu) != (net.mac, net.mtu) {
        return Err(format!(
            "it is of a card with MAC {:02x?} and MTU {:?}, this one has {:02x?} and {:?}",
            state.mac, state.mtu, net.mac, net.mtu
        ));
    }
    if !state.addresses.is_bounded() {
        return Err("it has more addresses than are ever kept".into());
    }
    net.handle.forget();
    let delivered = state.delivered.len();
    if !net.receiver.resume(&state.waiting) || net.handle.deliver(state.delivered) < delivered {
        return Err("it has frames that are none, or more than are ever kept".into());
    }
    net.asked_to_announce = state.asked_to_announce;
    net.addresses = state.addresses;
    Ok(())
}
