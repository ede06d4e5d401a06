use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use vm_memory::Bytes;

use super::{CTRL, DeviceError, MAX_DESCRIPTORS, Net, Queues, Served};
use crate::virtio::{Chain, DeviceMemory};

/// `struct virtio_net_ctrl`: class and command.
const ACKNOWLEDGED: [u8; 2] = [VIRTIO_NET_CTRL_ANNOUNCE as u8, VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8];

impl Net {
    /// Answers the driver's commands, of which there is one: it has announced the guest.
    pub(super) fn control(&mut self, queues: &mut Queues<'_>) -> Result<Served, DeviceError> {
        queues.serve(CTRL, |chain, memory| {
            let command = command(chain.clone(), memory)?;
            let answer = if command == Some(ACKNOWLEDGED) {
                self.asked_to_announce = false;
                VIRTIO_NET_OK
            } else {
                VIRTIO_NET_ERR
            };
            let Some(place) = chain.take(MAX_DESCRIPTORS).find(|d| d.is_write_only() && d.len() > 0) else {
                return Err(refused("a command without room for its answer"));
            };
            memory
                .write_obj(answer as u8, place.addr())
                .map_err(|_| refused("a command's answer outside of RAM"))?;
            Ok(1)
        })
    }
}

/// The first two bytes of what the driver sent.
fn command(chain: Chain<'_>, memory: &DeviceMemory) -> Result<Option<[u8; 2]>, DeviceError> {
    let mut command = [0; 2];
    let mut length = 0;
    for descriptor in chain.take(MAX_DESCRIPTORS).filter(|descriptor| !descriptor.is_write_only()) {
        let rest = &mut command[length..];
        let more = rest.len().min(descriptor.len() as usize);
        memory
            .read_slice(&mut rest[..more], descriptor.addr())
            .map_err(|_| refused("a command outside of RAM"))?;
        length += more;
    }
    Ok((length == 2).then_some(command))
}

fn refused(reason: &'static str) -> DeviceError {
    DeviceError::Request { queue: CTRL, reason }
}
