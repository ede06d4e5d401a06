//! What came from outside for the guest while it was on its way, handed on to where it runs.

use std::fmt;

use bytes::Bytes;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The first protocol version that has [`ToDestination::LateInput`](crate::ToDestination::LateInput).
pub const LATE_INPUT_SINCE: u16 = 5;
/// Most bytes of one input: the largest frame that a network device with segmentation offload takes (64 KiB, virtio
/// 1.3 section 5.1.6.2) and the headers before it.
pub const MAX_LATE_INPUT: usize = (64 << 10) + 128;
/// Most bytes of all inputs of one message.
pub const MAX_LATE_BYTES: usize = 256 << 10;
/// Most inputs of one message: as many small frames as a TAP queues by default (`txqueuelen`), and a few more.
pub const MAX_LATE_INPUTS: usize = 1024;

/// Something that came from outside for a device of the guest: a network frame, for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LateInput {
    /// Instance of the device.
    pub device: u32,
    /// Its bytes, in the device's own form.
    pub data: Bytes,
}

/// Inputs of one message, in the order in which they came: never more than the limits above, whoever made them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct LateInputs {
    inputs: Vec<LateInput>,
    #[serde(skip)]
    bytes: usize,
}

impl LateInputs {
    /// Puts another one behind those that are there.
    ///
    /// # Errors
    /// The input, when it is too long or has no place beside the others.
    pub fn push(&mut self, input: LateInput) -> Result<(), LateInput> {
        let len = input.data.len();
        if len > MAX_LATE_INPUT || self.bytes + len > MAX_LATE_BYTES || self.inputs.len() == MAX_LATE_INPUTS {
            return Err(input);
        }
        self.bytes += len;
        self.inputs.push(input);
        Ok(())
    }

    /// All of them.
    #[must_use]
    pub fn inputs(&self) -> &[LateInput] {
        &self.inputs
    }

    /// How many bytes they have together.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }
}

impl IntoIterator for LateInputs {
    type Item = LateInput;
    type IntoIter = std::vec::IntoIter<LateInput>;

    fn into_iter(self) -> Self::IntoIter {
        self.inputs.into_iter()
    }
}

impl<'de> Deserialize<'de> for LateInputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Bounded)
    }
}

/// Refuses what [`LateInputs::push`] refuses before there is room for it.
struct Bounded;

impl<'de> Visitor<'de> for Bounded {
    type Value = LateInputs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX_LATE_INPUTS} late inputs of {MAX_LATE_BYTES} bytes together")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<LateInputs, A::Error> {
        let mut inputs = LateInputs::default();
        while let Some(input) = seq.next_element()? {
            inputs.push(input).map_err(|_| A::Error::custom("more late input than a message may have"))?;
        }
        Ok(inputs)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{MAX_MESSAGE, ToDestination, WireError, decode_message, encode_message};

    fn input(len: usize) -> LateInput {
        LateInput { device: u32::MAX, data: vec![7; len].into() }
    }

    fn full_of(len: usize) -> LateInputs {
        let mut inputs = LateInputs::default();
        while inputs.push(input(len)).is_ok() {}
        inputs
    }

    #[test]
    fn the_fullest_messages_survive_the_wire() {
        for len in [0, 60, 256, 1514, MAX_LATE_INPUT] {
            let inputs = full_of(len);
            assert_eq!(inputs.bytes(), inputs.inputs().len() * len);
            let bytes = encode_message(&ToDestination::LateInput(inputs.clone()));
            assert!(bytes.len() <= MAX_MESSAGE);
            assert_eq!(
                decode_message::<ToDestination>(&bytes).unwrap(),
                ToDestination::LateInput(inputs),
                "{len}"
            );
        }
    }

    #[test]
    fn a_message_with_more_than_it_may_have_is_refused() {
        // Written as the message is, by somebody who knows no limits.
        #[derive(Serialize)]
        struct Unbounded(Vec<LateInput>);
        let tag = encode_message(&ToDestination::LateInput(LateInputs::default()))[0];
        let written = |inputs: Vec<LateInput>| [vec![tag], encode_message(&Unbounded(inputs))].concat();
        assert!(decode_message::<ToDestination>(&written(vec![input(9); MAX_LATE_INPUTS])).is_ok());
        for wrong in [
            vec![input(MAX_LATE_INPUT + 1)],
            vec![input(0); MAX_LATE_INPUTS + 1],
            vec![input(MAX_LATE_INPUT); MAX_LATE_BYTES / MAX_LATE_INPUT + 1],
        ] {
            let refused = decode_message::<ToDestination>(&written(wrong));
            assert!(matches!(refused, Err(WireError::Malformed { .. })), "{refused:?}");
        }
        // A count without inputs behind it.
        let lie = decode_message::<ToDestination>(&[tag, 0xff, 0xff, 0xff, 0xff, 0x0f]);
        assert!(matches!(lie, Err(WireError::Malformed { .. })), "{lie:?}");
    }

    proptest! {
        #[test]
        fn inputs_keep_their_order_and_their_bytes(
            inputs in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)), 0..50),
        ) {
            let mut sent = LateInputs::default();
            for (device, data) in &inputs {
                sent.push(LateInput { device: *device, data: data.clone().into() }).unwrap();
            }
            let bytes = encode_message(&ToDestination::LateInput(sent));
            let Ok(ToDestination::LateInput(came)) = decode_message(&bytes) else {
                return Err(TestCaseError::fail("another message"));
            };
            let came: Vec<_> = came.into_iter().map(|input| (input.device, input.data.to_vec())).collect();
            prop_assert_eq!(came, inputs);
        }
    }
}
