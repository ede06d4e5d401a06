use migrated_guest::{GuestError, SectionId, StateSection};

use super::Hardware;
use super::section::{Sections, decode, encode, refused};
use crate::virtio::VirtioPci;

/// The bus. Its version is also that of the part of a device's section that is the transport's.
fn bus_id() -> SectionId {
    SectionId { kind: "pci".into(), instance: 0, version: 1 }
}

/// A device. The instance is its slot, so that hosts notice when they have put devices in another order.
fn device_id(slot: u32, device: &VirtioPci) -> SectionId {
    let kind = device.kind();
    SectionId { kind: format!("virtio-{}", kind.name), instance: slot, version: kind.version.into() }
}

/// The sections of the bus and all devices; none where there are no devices.
pub(super) fn ids(hardware: &Hardware) -> Vec<SectionId> {
    let Some(devices) = &hardware.devices else { return Vec::new() };
    let of_devices = devices.functions().map(|(slot, device)| device_id(slot, device));
    [bus_id()].into_iter().chain(of_devices).collect()
}

pub(super) fn save(hardware: &Hardware, sections: &mut Vec<StateSection>) {
    let Some(devices) = &hardware.devices else { return };
    sections.push(StateSection { id: bus_id(), data: encode(&devices.bus().address()) });
    for (slot, device) in devices.functions() {
        sections.push(StateSection { id: device_id(slot, device), data: encode(&device.state()) });
    }
}

/// # Errors
/// [`GuestError::Section`].
pub(super) fn restore(hardware: &Hardware, sections: &mut Sections) -> Result<(), GuestError> {
    let Some(devices) = &hardware.devices else { return Ok(()) };
    let id = bus_id();
    let address = decode(&sections.take(&id));
    address
        .and_then(|address| devices.bus().restore_address(address))
        .map_err(|reason| refused(&id, reason))?;
    for (slot, device) in devices.functions() {
        let id = device_id(slot, device);
        let state = decode(&sections.take(&id));
        state.and_then(|state| device.restore(state)).map_err(|reason| refused(&id, reason))?;
    }
    Ok(())
}
