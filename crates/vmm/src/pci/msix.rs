use serde::{Deserialize, Serialize};

/// Bytes of an entry of the table (PCI 3.0, 6.8.2.6): address, upper address, data, vector control.
pub(crate) const ENTRY_BYTES: usize = 16;
/// Vector control: the vector is masked.
const MASKED: u32 = 1;
/// Message control, the last word of the capability's first dword: MSI-X is on.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const FUNCTION_MASK: u16 = 1 << 14;

/// An interrupt as it goes to the interrupt controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub address: u64,
    pub data: u32,
}

/// A function's MSI-X: vectors, of which each is a message, and those that wait for being unmasked.
///
/// What makes a message due gives it to the caller, who sends it.
#[derive(Debug)]
pub(crate) struct Msix {
    table: Vec<[u32; 4]>,
    /// A bit a vector, as in the pending bit array.
    pending: u64,
    control: u16,
}

/// What of it must be saved. Message control is part of the configuration space, and saved there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MsixState {
    table: Vec<[u32; 4]>,
    pending: u64,
}

impl Msix {
    /// The most vectors that a function can have here. PCI's limit is 2048.
    pub(crate) const MAX_VECTORS: usize = 64;

    /// One with `vectors` vectors, all masked, and switched off.
    pub(crate) fn new(vectors: usize) -> Self {
        assert!((1..=Self::MAX_VECTORS).contains(&vectors), "{vectors} vectors");
        Self { table: vec![[0, 0, 0, MASKED]; vectors], pending: 0, control: 0 }
    }

    /// Number of vectors.
    pub(crate) fn vectors(&self) -> usize {
        self.table.len()
    }

    /// The capability's body for `vectors` vectors, whose table and pending bit array lie at these offsets of BAR 0,
    /// multiples of 8; and which of its bits can be written.
    pub(crate) fn capability(vectors: usize, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(vectors as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        (body, (ENABLE | FUNCTION_MASK).to_le_bytes())
    }

    /// A vector's event happened. Nothing is due when it waits for being unmasked, or MSI-X is off.
    pub(crate) fn trigger(&mut self, vector: u16) -> Option<Message> {
        let entry = self.table.get(usize::from(vector))?;
        if self.control & ENABLE == 0 {
            return None;
        }
        if self.masked(entry) {
            self.pending |= 1 << vector;
            return None;
        }
        Some(message(entry))
    }

    /// The driver wrote message control. Adds what is due now.
    pub(crate) fn set_control(&mut self, control: u16, due: &mut Vec<Message>) {
        self.control = control;
        (0..self.table.len()).for_each(|vector| due.extend(self.unmasked(vector)));
    }

    /// Reads the table.
    pub(crate) fn read_table(&self, offset: usize, data: &mut [u8]) {
        let bytes = self.table.iter().flatten().flat_map(|dword| dword.to_le_bytes());
        fill(data, bytes.skip(offset));
    }

    /// Writes the table: aligned dwords and qwords, as PCI has it (6.8.2). Adds what is due now.
    pub(crate) fn write_table(&mut self, offset: usize, data: &[u8], due: &mut Vec<Message>) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len()) {
            return;
        }
        let vector = offset / ENTRY_BYTES;
        let Some(entry) = self.table.get_mut(vector) else { return };
        for (dword, bytes) in entry[offset % ENTRY_BYTES / 4..].iter_mut().zip(data.chunks_exact(4)) {
            *dword = u32::from_le_bytes(bytes.try_into().expect("chunks of 4"));
        }
        // Reserved bits of vector control.
        entry[3] &= MASKED;
        due.extend(self.unmasked(vector));
    }

    /// Reads the pending bit array.
    pub(crate) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        fill(data, self.pending.to_le_bytes().into_iter().skip(offset));
    }

    pub(crate) fn state(&self) -> MsixState {
        MsixState { table: self.table.clone(), pending: self.pending }
    }

    /// `control` is message control, which the state does not have.
    ///
    /// # Errors
    /// In words, when it can't be what [`state`](Self::state) gave.
    pub(crate) fn restore(&mut self, state: MsixState, control: u16) -> Result<(), String> {
        let MsixState { table, pending } = state;
        if table.len() != self.table.len() {
            return Err(format!("it has {} MSI-X vectors and not {}", table.len(), self.table.len()));
        }
        if table.iter().any(|entry| entry[3] & !MASKED != 0) {
            return Err("reserved bits of an MSI-X vector control are set".into());
        }
        if pending.checked_shr(table.len() as u32).unwrap_or(0) != 0 {
            return Err("an MSI-X vector is pending that does not exist".into());
        }
        *self = Self { table, pending, control };
        Ok(())
    }

    fn masked(&self, entry: &[u32; 4]) -> bool {
        self.control & FUNCTION_MASK != 0 || entry[3] & MASKED != 0
    }

    /// The message of a vector that was pending and no longer has a reason to.
    fn unmasked(&mut self, vector: usize) -> Option<Message> {
        let entry = &self.table[vector];
        let waits = self.control & ENABLE == 0 || self.masked(entry);
        if self.pending & 1 << vector == 0 || waits {
            return None;
        }
        self.pending &= !(1 << vector);
        Some(message(entry))
    }
}

fn message(entry: &[u32; 4]) -> Message {
    Message { address: u64::from(entry[0]) | u64::from(entry[1]) << 32, data: entry[2] }
}

/// Bytes of a register file; what lies past its end is zero.
fn fill(data: &mut [u8], bytes: impl Iterator<Item = u8>) {
    data.iter_mut().zip(bytes.chain(std::iter::repeat(0))).for_each(|(to, from)| *to = from);
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: u64 = 0xfee0_1000;

    /// Vector n sends n + 0x40, and is masked or not.
    fn set(msix: &mut Msix, vector: usize, control: u32) -> Vec<Message> {
        let mut due = Vec::new();
        msix.write_table(vector * 16, &ADDRESS.to_le_bytes(), &mut due);
        msix.write_table(vector * 16 + 8, &(vector as u32 + 0x40).to_le_bytes(), &mut due);
        msix.write_table(vector * 16 + 12, &control.to_le_bytes(), &mut due);
        due
    }

    fn control(msix: &mut Msix, control: u16) -> Vec<Message> {
        let mut due = Vec::new();
        msix.set_control(control, &mut due);
        due
    }

    fn sent(vector: u32) -> Message {
        Message { address: ADDRESS, data: vector + 0x40 }
    }

    #[test]
    fn a_vector_is_sent_when_nothing_masks_it_and_once() {
        let mut msix = Msix::new(3);
        assert_eq!(set(&mut msix, 1, 0), []);
        assert_eq!(msix.trigger(1), None, "MSI-X is off, and its events are nobody's");
        assert_eq!(control(&mut msix, ENABLE), []);
        assert_eq!(msix.trigger(1), Some(sent(1)));
        assert_eq!(msix.trigger(2), None, "vectors begin masked");
        assert_eq!(msix.trigger(2), None);
        let mut bits = [0; 8];
        msix.read_pending(0, &mut bits);
        assert_eq!(bits, [4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(set(&mut msix, 2, 0), [sent(2)]);
        assert_eq!(set(&mut msix, 2, 0), []);
        assert_eq!((msix.trigger(3), msix.trigger(u16::MAX)), (None, None), "there are no such");
    }

    #[test]
    fn the_function_mask_holds_all_back() {
        let mut msix = Msix::new(2);
        set(&mut msix, 0, 0);
        set(&mut msix, 1, 1);
        assert_eq!(control(&mut msix, ENABLE | FUNCTION_MASK), []);
        assert_eq!((msix.trigger(0), msix.trigger(1)), (None, None));
        assert_eq!(control(&mut msix, ENABLE), [sent(0)], "1 has a mask of its own");
        assert_eq!(control(&mut msix, 0), []);
        assert_eq!(set(&mut msix, 1, 0), [], "MSI-X is off");
        assert_eq!(control(&mut msix, ENABLE), [sent(1)]);
    }

    #[test]
    fn the_table_reads_as_written_and_narrow_writes_are_none() {
        let mut msix = Msix::new(64);
        set(&mut msix, 63, 0xffff_fffe);
        let mut entry = [0; 20];
        msix.read_table(63 * 16, &mut entry);
        assert_eq!(entry[..8], ADDRESS.to_le_bytes());
        assert_eq!(
            entry[8..],
            [0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            "no reserved bit, nothing past the end"
        );
        let mut due = Vec::new();
        for (offset, len) in [(0, 1), (0, 2), (2, 4), (4, 8), (64 * 16, 4), (usize::MAX - 7, 8)] {
            msix.write_table(offset, &[0xff; 8][..len], &mut due);
        }
        let mut first = [0xff; 16];
        msix.read_table(0, &mut first);
        assert_eq!(first, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn what_is_pending_arrives() {
        let mut msix = Msix::new(64);
        control(&mut msix, ENABLE);
        msix.trigger(63);
        let mut other = Msix::new(64);
        other.restore(msix.state(), ENABLE).unwrap();
        assert_eq!(set(&mut other, 63, 0), [sent(63)]);
        assert!(Msix::new(63).restore(msix.state(), 0).unwrap_err().contains("64"));
        let mut few = Msix::new(2);
        let state = MsixState { pending: 4, ..few.state() };
        assert!(few.restore(state, 0).unwrap_err().contains("pending"));
        let state = MsixState { table: vec![[0, 0, 0, 2]; 2], ..few.state() };
        assert!(few.restore(state, 0).unwrap_err().contains("reserved"));
    }
}
